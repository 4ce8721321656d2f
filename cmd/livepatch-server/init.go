package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"livepatch"
	"livepatch/internal/blob"
	"livepatch/internal/store"
	"livepatch/internal/stream"
)

// initOptions is what init is asked for.
type initOptions struct {
	data            string
	hosts           []string
	tlsCert, tlsKey string
	offlineKeys     bool
	listen          string
	publicURL       string
}

func (p *program) initialise() *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use:   "init --data DIR",
		Short: "Make the data folder of a new server",
		Long: `Make the data folder of a new server: database, blob folder, the stream and its
keys, a certificate authority and a server certificate unless --tls-cert and
--tls-key name yours, and a first operator's credential. The folder must be empty
or missing; nothing is ever overwritten, and a failed init leaves nothing behind.

Root and signing keys are made too, in DIR/operator, and are ready to use. Whoever
has them can make every machine load what they sign: move that folder to where
livepatch-admin runs. With --offline-keys none are made here, and
'livepatch-admin keys create' makes them elsewhere.`,
		Example: `  livepatch-server init --data /var/lib/livepatch-server --host livepatch.example.com

  # Keys that never touch this host
  livepatch-server init --data /var/lib/livepatch-server --host livepatch.example.com --offline-keys`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := p.runInit(c.Context(), o); err != nil {
				return fmt.Errorf("cannot make a new server: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.data, "data", "", "folder to make")
	f.StringArrayVar(&o.hosts, "host", nil, "name or address of this server for its certificate; repeat it for more, the first is its public one")
	f.StringVar(&o.tlsCert, "tls-cert", "", "use this certificate file (PEM, with chain) and make none")
	f.StringVar(&o.tlsKey, "tls-key", "", "the private key of --tls-cert")
	f.BoolVar(&o.offlineKeys, "offline-keys", false, "make no root and signing keys here")
	f.StringVar(&o.listen, "listen", defaults().Listen, "address to serve on")
	f.StringVar(&o.publicURL, "public-url", "", "how machines reach the server (default https://HOST:PORT)")
	_ = c.MarkFlagDirname("data")
	_ = c.MarkFlagRequired("data")
	return c
}

// unfinished is the folder inside the data folder in which init works. Where it
// exists, init did not finish.
const unfinished = ".init"

func (p *program) runInit(ctx context.Context, o initOptions) (err error) {
	if o.data, err = filepath.Abs(o.data); err != nil {
		return fmt.Errorf("find the data folder: %w", err)
	}
	if err := p.complete(&o); err != nil {
		return err
	}
	made, err := claim(o.data)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, abandon(o.data, made))
		}
	}()
	work := filepath.Join(o.data, unfinished)
	if err := os.Mkdir(work, 0o700); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	trust, err := p.build(ctx, work, o)
	if err != nil {
		return err
	}
	if err := settle(o.data); err != nil {
		return err
	}
	return p.tell(o, trust)
}

// complete checks the options and fills in what was not said.
func (p *program) complete(o *initOptions) error {
	on, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "--listen %q is not HOST:PORT or :PORT", o.listen)
	}
	for _, h := range o.hosts {
		if h == "" || strings.ContainsAny(h, "/: ") && net.ParseIP(h) == nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "--host %q is not a host name or address; give it without https:// and port", h)
		}
	}
	for _, file := range []*string{&o.tlsCert, &o.tlsKey} {
		if *file == "" {
			continue
		}
		if *file, err = filepath.Abs(*file); err != nil {
			return fmt.Errorf("find %s: %w", *file, err)
		}
	}
	public := p.hostname
	switch ip := net.ParseIP(on); {
	case len(o.hosts) > 0:
		public = o.hosts[0]
	case on == "localhost", ip != nil && !ip.IsUnspecified():
		public, o.hosts = on, []string{on, p.hostname}
	default:
		o.hosts = []string{"localhost", p.hostname}
	}
	if o.publicURL == "" {
		o.publicURL = "https://" + net.JoinHostPort(public, port)
	}
	s := defaults()
	s.Listen, s.PublicURL, s.TLSCert, s.TLSKey = o.listen, o.publicURL, o.tlsCert, o.tlsKey
	return s.validate()
}

// claim makes sure that the folder is ours to fill: missing, empty, or left by an
// init that was interrupted. It tells whether it made the folder.
func claim(dir string) (made bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return false, fmt.Errorf("make data folder: %w", err)
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look into data folder: %w", err)
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == unfinished }) {
		return false, empty(dir)
	}
	if len(entries) > 0 {
		return false, livepatch.Errorf(livepatch.CodeConflict, "%s is not empty; init overwrites nothing. Name another folder, or serve what is there: livepatch-server serve --data %s", dir, dir)
	}
	return false, nil
}

// abandon leaves the folder as claim found it.
func abandon(dir string, made bool) error {
	if made {
		return os.RemoveAll(dir)
	}
	return empty(dir)
}

// empty removes what is in dir; the mark that it is unfinished goes last.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clear %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() == unfinished {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
	}
	return os.RemoveAll(filepath.Join(dir, unfinished))
}

// settle moves everything from the unfinished folder to its place and removes the
// mark.
func settle(dir string) error {
	work := filepath.Join(dir, unfinished)
	entries, err := os.ReadDir(work)
	if err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(work, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("finish: %w", err)
		}
	}
	if err := os.Remove(work); err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	return nil
}

// build makes everything in dir and returns the stream's fingerprint, empty with
// offline keys.
func (p *program) build(ctx context.Context, dir string, o initOptions) (trust string, err error) {
	if err := p.buildTLS(dir, o); err != nil {
		return "", err
	}
	online, err := stream.GenerateOnlineKeys(rand.Reader)
	if err != nil {
		return "", err
	}
	public, err := json.MarshalIndent(online.Public(), "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode online keys: %w", err)
	}
	for _, sub := range []string{onlineDir, "operator", "operator/keys"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return "", fmt.Errorf("make folder: %w", err)
		}
	}
	err = errors.Join(
		stream.WriteOnlineKeys(filepath.Join(dir, onlineDir), online),
		writeFile(filepath.Join(dir, onlineFile), append(public, '\n'), 0o644),
		writeYAML(filepath.Join(dir, "server.yaml"), "Settings of livepatch-server as init was told them; 'livepatch-server config' lists all keys.", serverYAML(o)),
		p.buildOperator(ctx, dir, o))
	if err != nil {
		return "", err
	}
	blobs, err := blob.OpenDir(filepath.Join(dir, "blobs"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	if o.offlineKeys {
		return "", nil
	}
	return p.buildStream(ctx, filepath.Join(dir, "operator/keys"), &stream.Publisher{Store: blobs, Keys: online, Now: p.now})
}

// buildTLS makes authority and certificate, or checks those given.
func (p *program) buildTLS(dir string, o initOptions) error {
	if o.tlsCert != "" {
		c := certificate{certFile: o.tlsCert, keyFile: o.tlsKey, now: p.now}
		if err := c.load(); err != nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "--tls-cert and --tls-key are not a certificate and its key: %w", err)
		}
		return nil
	}
	a, err := newAuthority(dir, o.hosts[0], p.now())
	if err != nil {
		return err
	}
	// This host itself may always use its loopback names.
	hosts := slices.Clone(o.hosts)
	for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return a.serverCertificate(dir, hosts, p.now())
}

// buildOperator makes database and first operator, and what livepatch-admin needs
// to be that operator.
func (p *program) buildOperator(ctx context.Context, dir string, o initOptions) error {
	credential := newCredential()
	db, err := store.OpenSQLite(ctx, filepath.Join(dir, "server.db"), p.now)
	if err != nil {
		return err
	}
	if err := errors.Join(db.AddOperator(ctx, "init", "operator", credential), db.Close()); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return fmt.Errorf("read --listen: %w", err)
	}
	// Files are named from the folder they are in, which can be moved.
	admin := map[string]string{
		"server": "https://" + net.JoinHostPort(o.hosts[0], port),
		"token":  credential,
		"keys":   "keys",
	}
	if o.tlsCert == "" {
		admin["ca-certs"] = "ca.crt"
		ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		if err != nil {
			return fmt.Errorf("copy ca.crt: %w", err)
		}
		if err := writeFile(filepath.Join(dir, "operator/ca.crt"), ca, 0o644); err != nil {
			return err
		}
	}
	return writeYAML(filepath.Join(dir, "operator/admin.yaml"), "For livepatch-admin --config. Keep it secret: whoever has the token is an operator.", admin)
}

func serverYAML(o initOptions) map[string]string {
	// The first machines of a new installation are to get what is published at once;
	// docs/operations.md says when to go on to stages.
	values := map[string]string{"listen": o.listen, "public-url": o.publicURL, "rollout-policy": "everybody"}
	if o.tlsCert != "" {
		values["tls-cert"], values["tls-key"] = o.tlsCert, o.tlsKey
	}
	return values
}

func writeYAML(path, comment string, values map[string]string) error {
	b, err := yaml.Marshal(values)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return writeFile(path, append([]byte("# "+comment+"\n"), b...), 0o600)
}

// buildStream makes root and signing keys in dir and the first metadata, signed
// with them. The first root is kept beside the keys: livepatch-admin trusts it.
func (p *program) buildStream(ctx context.Context, dir string, publisher *stream.Publisher) (string, error) {
	root, err1 := stream.GenerateKey(rand.Reader)
	signing, err2 := stream.GenerateKey(rand.Reader)
	err := errors.Join(err1, err2,
		stream.WriteKey(filepath.Join(dir, "root-1.pem"), root),
		stream.WriteKey(filepath.Join(dir, "signing-1.pem"), signing))
	if err != nil {
		return "", err
	}
	first, err := stream.Create(stream.KeySet{
		Root: []stream.PublicKey{root.Public()}, RootThreshold: 1,
		Signing: []stream.PublicKey{signing.Public()}, SigningThreshold: 1,
		Online: publisher.Keys.Public(),
	}, []stream.Key{root, signing}, stream.Lifetimes{}, p.now())
	if err != nil {
		return "", err
	}
	if err := writeFile(filepath.Join(dir, "1.root.json"), first.Metadata["1.root.json"], 0o644); err != nil {
		return "", err
	}
	result, err := publisher.Accept(ctx, first.Change)
	return result.Trust, err
}

// tell says what was made and what comes next, ready to be typed.
func (p *program) tell(o initOptions, trust string) error {
	at := func(name string) string { return filepath.Join(o.data, name) }
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("Made a livepatch server in %s:", o.data)
	line("  server.db, blobs/      what it knows and what it serves")
	line("  server.yaml            its settings")
	line("  online/                keys that only keep the stream fresh; they stay here")
	if o.tlsCert == "" {
		line("  ca.crt                 give it to your machines as ca-certs; the server's certificate is signed by it")
	}
	line("  operator/admin.yaml    the first operator's credential")
	if !o.offlineKeys {
		line("  operator/keys/         root and signing keys of the stream %s", trust)
		line("")
		line("Whoever has operator/ can make every machine load what they sign. The server never")
		line("reads it: move it to where livepatch-admin runs, and keep a copy of the keys offline.")
	}
	line("")
	line("Next, serve:")
	line("  livepatch-server serve --data %s", o.data)
	if o.offlineKeys {
		line("make the keys where livepatch-admin runs, with %s, and push their first words:", at("online-keys.json"))
		line("  livepatch-admin keys create --dir KEYS --online %s", at("online-keys.json"))
		line("  livepatch-admin --config %s keys push --dir KEYS", at("operator/admin.yaml"))
	}
	line("and make an account and a token for its machines:")
	line("  livepatch-admin --config %s account create NAME", at("operator/admin.yaml"))
	line("  livepatch-admin --config %s token create NAME", at("operator/admin.yaml"))
	return p.s.Printf("%s", strings.TrimSuffix(b.String(), "\n"))
}
