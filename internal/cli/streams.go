package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// Streams are a command's standard streams and what is known of them.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// OutTerminal and ErrTerminal tell that a person watches the stream.
	OutTerminal, ErrTerminal bool
	// Color allows escape sequences on Out.
	Color bool
	// Width is the width of the terminal behind Out in columns, 0 when there is
	// none.
	Width int
	// Quiet silences progress, never results and errors.
	Quiet bool
}

// NewStreams looks at the three streams. Colour is for terminals only, and not
// where getenv says NO_COLOR (https://no-color.org) or TERM=dumb.
func NewStreams(in io.Reader, out, err io.Writer, getenv func(string) string) *Streams {
	s := &Streams{In: in, Out: out, Err: err}
	s.OutTerminal, s.Width = terminal(out)
	s.ErrTerminal, _ = terminal(err)
	s.Color = s.OutTerminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
	return s
}

func terminal(w io.Writer) (ok bool, width int) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return false, 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return true, 0
	}
	return true, width
}

// Printf writes a line of result to Out; the newline is added.
func (s *Streams) Printf(format string, args ...any) error {
	_, err := fmt.Fprintf(s.Out, format+"\n", args...)
	return err
}

// JSON writes v to Out, indented by two spaces, with <, > and & as they are.
func (s *Streams) JSON(v any) error {
	e := json.NewEncoder(s.Out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
