package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// answer is one resource or one page, kept as it came for --json.
type answer struct {
	Data       jsontext.Value `json:"data"`
	Position   string         `json:"position,omitzero"`
	NextCursor *string        `json:"next_cursor,omitzero"`
	Rest       jsontext.Value `json:",embed"` // what a page says beside its rows
}

// gaps says what the ledger lacks in the time asked for.
type gaps struct {
	Count    uint64 `json:"count"`
	UsesLost uint64 `json:"uses_lost"`
	Unknown  bool   `json:"unknown"`
}

func (g *gaps) String() string {
	s := fmt.Sprintf("the ledger has %d gap(s) in the time asked for: ", g.Count)
	switch {
	case g.UsesLost == 0:
		return s + "an unknown number of uses is not on the record"
	case g.Unknown:
		return fmt.Sprintf("%s%d uses are not on the record, and an unknown number more", s, g.UsesLost)
	}
	return fmt.Sprintf("%s%d uses are not on the record", s, g.UsesLost)
}

// remark prints for people what they must know beside the rows.
func remark(w io.Writer, g *gaps, notes []string) {
	if g != nil && g.Count > 0 {
		fmt.Fprintln(w, "note:", g)
	}
	for _, n := range notes {
		fmt.Fprintln(w, "note:", n)
	}
}

// call does one request and returns the answer.
func (a *app) call(ctx context.Context, override, method, path string, query url.Values, header http.Header, in any) (*answer, error) {
	c, err := a.client(override)
	if err != nil {
		return nil, err
	}
	ans := new(answer)
	return ans, c.Do(ctx, method, path, query, header, in, ans)
}

// printJSON writes the answer as indented JSON.
func (a *app) printJSON(v any) error {
	b, err := json.Marshal(v, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, string(b))
	return err
}

// show prints one resource: as JSON, or by human.
func show[T any](a *app, ans *answer, human func(w io.Writer, v *T)) error {
	if a.json {
		return a.printJSON(ans)
	}
	v := new(T)
	if err := json.Unmarshal(ans.Data, v); err != nil {
		return fmt.Errorf("the answer is not what this command expects: %w", err)
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	human(w, v)
	return w.Flush()
}

// table prints a list. With all it follows next_cursor to the end. As JSON it is
// always one page, {"data": […], "next_cursor": …}, with each row on a line of its
// own and printed as it comes.
func table[T any](ctx context.Context, a *app, override, path string, query url.Values, all bool, head string, row func(v *T) string) error {
	var p pages = &jsonPages{out: a.out}
	if !a.json {
		p = &textPages[T]{out: a.out, err: a.err, head: head, row: row}
	}
	for {
		ans, err := a.call(ctx, override, http.MethodGet, path, query, nil, nil)
		if err != nil {
			return err
		}
		if err := p.page(ans); err != nil {
			return err
		}
		if ans.NextCursor == nil || !all {
			return p.end(ans)
		}
		if *ans.NextCursor == query.Get("cursor") {
			return errSameCursor
		}
		query.Set("cursor", *ans.NextCursor)
	}
}

// errSameCursor ends a list whose server would give one page for ever.
var errSameCursor = errors.New("the answer is not what this command expects: its next_cursor is that of the page before")

// pages prints the pages of a list as they come.
type pages interface {
	page(*answer) error
	end(last *answer) error
}

// rowsOf reads the rows of a page.
func rowsOf[T any](ans *answer) (rows []T, err error) {
	if err = json.Unmarshal(ans.Data, &rows); err != nil {
		return nil, fmt.Errorf("the answer is not what this command expects: %w", err)
	}
	return rows, nil
}

type textPages[T any] struct {
	out, err io.Writer
	head     string
	row      func(v *T) string
	rows     int
	begun    bool
}

func (p *textPages[T]) page(ans *answer) error {
	list, err := rowsOf[T](ans)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(p.out, 0, 4, 2, ' ', 0)
	if !p.begun {
		p.begun = true
		fmt.Fprintln(w, p.head)
		var beside struct {
			Gaps  *gaps    `json:"gaps"`
			Notes []string `json:"notes"`
		}
		if len(ans.Rest) > 0 {
			if err := json.Unmarshal(ans.Rest, &beside); err != nil {
				return fmt.Errorf("the answer is not what this command expects: %w", err)
			}
		}
		remark(p.err, beside.Gaps, beside.Notes)
	}
	for i := range list {
		fmt.Fprintln(w, p.row(&list[i]))
	}
	p.rows += len(list)
	return w.Flush()
}

func (p *textPages[T]) end(last *answer) error {
	if last.NextCursor != nil {
		fmt.Fprintf(p.err, "%d shown, there are more: --all, or --cursor %s\n", p.rows, *last.NextCursor)
	}
	return nil
}

type jsonPages struct {
	out  io.Writer
	rows int
}

func (p *jsonPages) page(ans *answer) error {
	rows, err := rowsOf[jsontext.Value](ans)
	if err != nil {
		return err
	}
	for _, row := range rows {
		lead := "    "
		if p.rows > 0 {
			lead = ",\n    "
		} else if _, err := fmt.Fprintln(p.out, "{\n  \"data\": ["); err != nil {
			return err
		}
		p.rows++
		if _, err := fmt.Fprint(p.out, lead, string(row)); err != nil {
			return err
		}
	}
	return nil
}

// end closes the page with what the last answer says beside its rows.
func (p *jsonPages) end(last *answer) error {
	b, err := json.Marshal(struct {
		NextCursor *string        `json:"next_cursor"`
		Rest       jsontext.Value `json:",embed"`
	}{last.NextCursor, last.Rest}, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	start := "\n  ],"
	if p.rows == 0 {
		start = "{\n  \"data\": [],"
	}
	_, err = fmt.Fprintln(p.out, start+strings.TrimPrefix(string(b), "{"))
	return err
}

// pageFlags are the flags of every list.
type pageFlags struct {
	limit  int
	cursor string
	all    bool
}

func (p *pageFlags) query(q url.Values) url.Values {
	if p.limit > 0 {
		q.Set("limit", fmt.Sprint(p.limit))
	}
	set(q, "cursor", p.cursor)
	return q
}

// set adds a query parameter unless it is empty.
func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}

// dash prints "-" for nothing.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func join(list []string) string { return dash(strings.Join(list, ",")) }

// field prints one line of a resource.
func field(w io.Writer, name, value string) {
	if value != "" {
		fmt.Fprintln(w, cells(name, value))
	}
}
