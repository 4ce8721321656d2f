package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"livepatch/internal/api"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// demo is one performance.
type demo struct {
	*show
	lab *lab.Lab
	dir string

	kernel            *lab.Kernel
	diff, module, deb string
	repro             string
	service           *lab.Service
	token             api.CreatedToken
	host              *lab.Host
	machineID         string
}

// What the kernel answers to a program that sets the least size of a socket's buffer
// above the greatest: with the bug the buffer grows beyond its maximum.
const (
	vulnerable = "maximum 1024, buffer 4096"
	patched    = "maximum 1024, buffer 1024"
)

// run performs and returns the exit code.
func run(ctx context.Context, out io.Writer) int {
	d := &demo{show: &show{out: out, start: time.Now()}}
	err := d.perform(ctx)
	d.summary(err)
	if err != nil {
		return 1
	}
	fmt.Fprintln(out, "Every step was seen to happen.")
	return 0
}

func (d *demo) perform(ctx context.Context) (err error) {
	if d.lab, err = lab.New(d.note); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "livepatch-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir) //nolint:errcheck // a temporary folder
	defer func() {
		if d.host != nil {
			d.host.Stop()
			if err != nil {
				fmt.Fprintf(d.out, "\nThe machine's console:\n%s\n", d.host.Console())
			}
		}
		if d.service != nil {
			d.service.Stop()
			if err != nil {
				fmt.Fprintf(d.out, "\nThe server's log:\n%s\n", d.service.Log())
			}
		}
	}()
	for _, act := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"get the kernel", d.getKernel},
		{"get a real fix: what Debian changed in one file for " + lab.VsockFix.CVE, d.getFix},
		{"build a livepatch from the fix", d.buildLivepatch},
		{"build the package and a Debian image", d.build},
		{"start the server on its embedded default", d.serve},
		{"publish the livepatch", d.publish},
		{"boot Debian with systemd in a virtual machine", d.boot},
		{"install the package", d.install},
		{"see the bug in the running kernel", d.before},
		{"enable with a token", d.enable},
		{"see the running kernel patched", d.seePatched},
		{"ask for the status on the machine", d.status},
		{"ask for the server's view of the machine", d.view},
		{"reboot", d.reboot},
		{"see it patched before the network was up", d.beforeNetwork},
		{"withdraw the livepatch", d.withdraw},
		{"see the kernel as it was", d.seeUnpatched},
	} {
		if err := d.step(act.name, func() (string, error) { return act.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) getKernel(ctx context.Context) (_ string, err error) {
	d.kernel, err = d.lab.Kernel(ctx, lab.Release)
	return "linux-image-" + lab.Release, err
}

func (d *demo) getFix(ctx context.Context) (_ string, err error) {
	if d.diff, err = d.lab.Diff(ctx, lab.VsockFix); err != nil {
		return "", err
	}
	text, err := os.ReadFile(d.diff)
	d.text("$ cat "+filepath.Base(d.diff), string(text))
	return lab.VsockFix.File + ", from " + lab.VsockFix.From + " to " + lab.VsockFix.To, err
}

func (d *demo) buildLivepatch(ctx context.Context) (said string, err error) {
	name := lab.ModuleName(lab.Release, 1)
	d.module, said, err = d.lab.BuildFix(ctx, d.kernel, lab.VsockFix, d.diff, d.dir, name)
	if err != nil {
		return "", err
	}
	d.text("$ livepatch-admin build --kernel "+lab.Release+" --fixes "+lab.VsockFix.CVE+" "+filepath.Base(d.diff)+" -o "+name+".ko", said)
	return filepath.Base(d.module), nil
}

// build makes everything else at once: the parts do not depend on each other.
func (d *demo) build(ctx context.Context) (string, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := d.lab.Debian(ctx, d.kernel)
		return err
	})
	g.Go(func() (err error) {
		if d.repro, err = d.lab.GoBuild(ctx, "./test/fixes/repro"); err != nil {
			return err
		}
		d.deb, err = d.lab.Package(ctx, filepath.Join(d.dir, "dist"), "livepatch")
		return err
	})
	if err := g.Wait(); err != nil {
		return "", err
	}
	return filepath.Base(d.deb), nil
}

func (d *demo) serve(ctx context.Context) (_ string, err error) {
	if d.service, err = d.lab.NewService(ctx, filepath.Join(d.dir, "server")); err != nil {
		return "", err
	}
	if d.token, err = d.service.Token(ctx, "demo"); err != nil {
		return "", err
	}
	return d.service.URL, nil
}

func (d *demo) publish(ctx context.Context) (string, error) {
	fixes := lab.VsockFix.CVE + ":" + lab.VsockFix.Priority
	out, err := d.service.Admin(ctx, "publish", d.module, "--fixes", fixes, "--kernel-image", d.kernel.Image, "--source", d.diff)
	if err != nil {
		return "", err
	}
	d.text("$ livepatch-admin publish "+filepath.Base(d.module)+" --fixes "+fixes+" --kernel-image vmlinuz --source "+filepath.Base(d.diff), out)
	return "livepatch 1.1 is signed and on offer", nil
}

func (d *demo) boot(ctx context.Context) (_ string, err error) {
	if d.host, err = d.lab.StartDebian(ctx, d.kernel, d.dir, "demo"); err != nil {
		return "", err
	}
	state, err := d.host.AwaitSystem(ctx)
	if err == nil && state != "running" {
		failed, _ := d.host.Shell(ctx, "systemctl --failed") // only to say more
		err = fmt.Errorf("systemd says %q\n%s", state, failed)
	}
	if err != nil {
		return "", err
	}
	uname, err := d.host.Shell(ctx, "uname -r; cat /etc/debian_version")
	return strings.Join(strings.Fields(uname), ", Debian "), err
}

func (d *demo) install(ctx context.Context) (string, error) {
	out, err := d.host.Install(ctx, d.deb)
	if err != nil {
		return "", err
	}
	d.text("# dpkg -i "+filepath.Base(d.deb), out)
	id, err := d.host.Shell(ctx, "cat /etc/machine-id")
	d.machineID = strings.TrimSpace(id)
	return filepath.Base(d.deb), err
}

func (d *demo) before(ctx context.Context) (string, error) {
	if err := d.host.CopyIn(ctx, d.repro, "/root/provoke", 0o755); err != nil {
		return "", err
	}
	return vulnerable, d.shows(ctx, vulnerable, time.Second)
}

// enable types the command that the token came with. The server's own authority is
// made known first, as its owner would.
func (d *demo) enable(ctx context.Context) (string, error) {
	ca, err := os.ReadFile(filepath.Join(d.service.Dir, "ca.crt"))
	if err != nil {
		return "", err
	}
	exit, err := d.host.Run(ctx, guest.Run{Argv: []string{"livepatch", "config", "remote-server=" + d.service.URL, "ca-certs=@stdin"}, Stdin: ca})
	if err != nil {
		return "", err
	}
	if exit.Code != 0 {
		return "", fmt.Errorf("livepatch config: %s%s", exit.Stdout, exit.Stderr)
	}
	d.text("# livepatch config remote-server="+d.service.URL+" ca-certs=@stdin < ca.crt", "")
	out, err := d.host.Shell(ctx, d.token.Enable)
	if err != nil {
		return "", err
	}
	d.text("# "+strings.Replace(d.token.Enable, d.token.Secret, "TOKEN", 1), out)
	return "enrolled", nil
}

// shows waits until the program that provokes the bug says want.
func (d *demo) shows(ctx context.Context, want string, timeout time.Duration) error {
	err := lab.Await(ctx, "the kernel to answer "+want, timeout, func() (string, bool, error) {
		out, err := d.host.Shell(ctx, "/root/provoke vsock")
		return out, strings.TrimSpace(out) == want, err
	})
	if err == nil {
		d.text("# provoke vsock", want)
	}
	return err
}

func (d *demo) seePatched(ctx context.Context) (string, error) {
	return patched, d.shows(ctx, patched, time.Minute)
}

// status asks until the transition is over and the server knows.
func (d *demo) status(ctx context.Context) (string, error) {
	var status string
	err := lab.Await(ctx, "status to be applied", time.Minute, func() (string, bool, error) {
		out, err := d.host.Shell(ctx, "livepatch status --format json")
		return out, strings.Contains(out, `"applied"`), err
	})
	if err == nil {
		status, err = d.host.Shell(ctx, "livepatch -q status")
	}
	d.text("# livepatch status", status)
	return "applied, livepatch 1.1", err
}

func (d *demo) view(ctx context.Context) (string, error) {
	err := lab.Await(ctx, "the server to know that the machine is patched", time.Minute, func() (string, bool, error) {
		m, err := d.service.Machine(ctx, d.machineID)
		return fmt.Sprintf("%+v", m), m.PatchState == "applied" && m.Version.String() == "1.1", err
	})
	if err != nil {
		return "", err
	}
	out, err := d.service.Admin(ctx, "machine", "show", d.machineID)
	d.text("$ livepatch-admin machine show "+d.machineID, out)
	return "applied, livepatch 1.1", err
}

func (d *demo) reboot(ctx context.Context) (string, error) {
	before := d.host.BootID()
	if err := d.host.Reboot(ctx); err != nil {
		return "", err
	}
	if _, err := d.host.AwaitSystem(ctx); err != nil {
		return "", err
	}
	return "boot " + before[:8] + " to " + d.host.BootID()[:8], nil
}

func (d *demo) beforeNetwork(ctx context.Context) (string, error) {
	if err := d.shows(ctx, patched, 10*time.Second); err != nil {
		return "", err
	}
	applied, network, err := d.host.BeforeNetwork(ctx)
	if err != nil {
		return "", err
	}
	if applied >= network {
		return "", fmt.Errorf("it was applied %v after the kernel's start, the network was begun after %v", applied, network)
	}
	log, err := d.host.Shell(ctx, "journalctl -b -k -o short-monotonic --no-pager --grep 'livepatch:'")
	if err != nil {
		return "", err
	}
	d.text("# journalctl -b -k --grep livepatch:", log)
	return fmt.Sprintf("applied at %.1f s, network begun at %.1f s", applied.Seconds(), network.Seconds()), nil
}

func (d *demo) withdraw(ctx context.Context) (string, error) {
	out, err := d.service.Admin(ctx, "patch", "withdraw", lab.Release, "1.1", "--reason", "the demonstration is over")
	if err != nil {
		return "", err
	}
	d.text("$ livepatch-admin patch withdraw "+lab.Release+` 1.1 --reason "the demonstration is over"`, out)
	return "withdrawn", nil
}

func (d *demo) seeUnpatched(ctx context.Context) (string, error) {
	if err := d.shows(ctx, vulnerable, 2*time.Minute); err != nil {
		return "", err
	}
	err := lab.Await(ctx, "the module to be gone", time.Minute, func() (string, bool, error) {
		out, err := d.host.Shell(ctx, "ls /sys/kernel/livepatch; grep lkp_ /proc/modules || true")
		return out, out == "", err
	})
	if err != nil {
		return "", err
	}
	status, err := d.host.Shell(ctx, "livepatch -q status")
	d.text("# livepatch status", status)
	return "the module is gone", err
}
