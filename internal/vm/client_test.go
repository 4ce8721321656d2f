package vm

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/internal/vm/guest"
)

// connect returns a machine without QEMU: its guest serves in this process.
func connect(t *testing.T) (*VM, net.Conn) {
	t.Helper()
	host, port := net.Pipe()
	t.Cleanup(func() { host.Close(); port.Close() }) //nolint:errcheck // the test is over
	m := &VM{cfg: Config{Name: "test"}, client: newClient(host), console: &console{}, exited: make(chan struct{})}
	return m, port
}

func serve(t *testing.T, m *VM, port net.Conn, boot string) {
	t.Helper()
	go guest.Serve(port, guest.Hello{BootID: boot}) //nolint:errcheck // ends with the port
	if _, err := m.AwaitBoot(t.Context(), m.BootID(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if m.BootID() != boot {
		t.Fatalf("boot %q said hello, want %q", m.BootID(), boot)
	}
}

func TestRunTellsHowACommandEnded(t *testing.T) {
	t.Parallel()
	m, port := connect(t)
	serve(t, m, port, "one")
	exit, err := m.Run(t.Context(), guest.Run{
		Argv: []string{"sh", "-c", "cat; echo $WORD; echo bad >&2; exit 3"}, Stdin: []byte("in "), Env: []string{"WORD=out"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit.Code != 3 || string(exit.Stdout) != "in out\n" || string(exit.Stderr) != "bad\n" || exit.TimedOut {
		t.Errorf("the command ended with %+v", exit)
	}
	if _, err := m.Run(t.Context(), guest.Run{Argv: []string{"/no/such/program"}}); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestRunEndsACommandThatTakesTooLong(t *testing.T) {
	t.Parallel()
	m, port := connect(t)
	serve(t, m, port, "one")
	// The grandchild holds the output open; it must end too.
	exit, err := m.Run(t.Context(), guest.Run{Argv: []string{"sh", "-c", "sleep 1000 & sleep 1000"}, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if !exit.TimedOut {
		t.Errorf("the command ended with %+v", exit)
	}
}

func TestFilesArriveWhole(t *testing.T) {
	t.Parallel()
	m, port := connect(t)
	serve(t, m, port, "one")
	for _, size := range []int{0, 1, guest.ChunkSize, guest.ChunkSize + 1, 3 * guest.ChunkSize} {
		want := bytes.Repeat([]byte("livepatch\n"), size/10+1)[:size]
		path := filepath.Join(t.TempDir(), "file")
		if err := m.Put(t.Context(), path, 0o600, bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		got, err := m.Get(t.Context(), path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
		}
	}
	if _, err := m.Get(t.Context(), "/no/such/file"); err == nil {
		t.Error("a file that is not there was read")
	}
}

func TestRebootEndsWhatWasAsked(t *testing.T) {
	t.Parallel()
	m, port := connect(t)
	serve(t, m, port, "one")
	asked := make(chan error)
	go func() {
		_, err := m.Run(context.Background(), guest.Run{Argv: []string{"sleep", "1000"}, Timeout: time.Minute})
		asked <- err
	}()
	// The next boot cuts off a message of the one before.
	if _, err := port.Write([]byte(`{"id":1,"exit":{"code":`)); err != nil {
		t.Fatal(err)
	}
	for !waiting(m.client) {
		time.Sleep(time.Millisecond)
	}
	serve(t, m, port, "two")
	if err := <-asked; !errors.Is(err, ErrRebooted) {
		t.Errorf("the command of the first boot ended with %v", err)
	}
	if exit, err := m.Run(t.Context(), guest.Run{Argv: []string{"true"}}); err != nil || exit.Code != 0 {
		t.Errorf("after the reboot: %+v, %v", exit, err)
	}
}

// waiting tells whether a request is in flight.
func waiting(c *client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) > 0
}

func TestEndOfTheMachineEndsWhatWasAsked(t *testing.T) {
	t.Parallel()
	m, port := connect(t)
	serve(t, m, port, "one")
	port.Close() //nolint:errcheck // that is the test
	if _, err := m.Run(t.Context(), guest.Run{Argv: []string{"true"}}); err == nil {
		t.Error("a machine that is gone ran a command")
	}
}
