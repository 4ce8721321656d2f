package cli

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Table is rows under a header. On a terminal it is drawn to its width; in a pipe
// it is aligned text, one line per row, so that grep and awk work.
type Table struct {
	header []string
	rows   [][]string
}

// NewTable makes a table with these column names.
func NewTable(header ...string) *Table { return &Table{header: header} }

// Row appends a row. Missing cells are empty.
func (t *Table) Row(cells ...string) { t.rows = append(t.rows, cells) }

// Len is the number of rows.
func (t *Table) Len() int { return len(t.rows) }

// Write draws the table on s.Out, its header even when there are no rows.
func (t *Table) Write(s *Streams) error {
	w := table.NewWriter()
	w.AppendHeader(t.row(t.header, s))
	for _, r := range t.rows {
		w.AppendRow(t.row(r, s))
	}
	w.SetStyle(style(s))
	lines := strings.Split(w.Render(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return s.Printf("%s", strings.Join(lines, "\n"))
}

// row makes cells of strings. In a pipe a cell is never empty and never has a line
// break, so that a column keeps its number.
func (t *Table) row(cells []string, s *Streams) table.Row {
	row := make(table.Row, len(t.header))
	for i := range row {
		cell := ""
		if i < len(cells) {
			cell = cells[i]
		}
		if !s.OutTerminal {
			cell = OneLine(cell)
			if cell == "" {
				cell = "-"
			}
		}
		row[i] = cell
	}
	return row
}

func style(s *Streams) table.Style {
	st := table.StyleLight
	if !s.OutTerminal {
		st = table.StyleDefault
		st.Box.PaddingLeft, st.Box.PaddingRight = "", "  "
		st.Options = table.OptionsNoBordersAndSeparators
	}
	st.Format.Header = text.FormatUpper
	if s.Color {
		st.Color.Header = text.Colors{text.Bold}
	}
	st.Size.WidthMax = s.Width
	return st
}

// OneLine joins the lines of s with spaces and makes other control characters
// spaces too, for text of others that must not move a cursor.
func OneLine(s string) string {
	clean := func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}
	return strings.Join(strings.Fields(strings.Map(clean, s)), " ")
}
