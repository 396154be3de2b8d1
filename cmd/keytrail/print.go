package main

import (
	"context"
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
	Watermark  jsontext.Value `json:"watermark,omitzero"`
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

// table prints pages of a list. With all it follows next_cursor to the end; as
// JSON that is one row a line, so that it can be streamed, and otherwise the page
// as the door answered it.
func table[T any](ctx context.Context, a *app, override, path string, query url.Values, all bool, head string, row func(v *T) string) error {
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	if !a.json {
		fmt.Fprintln(w, head)
	}
	rows := 0
	for {
		ans, err := a.call(ctx, override, http.MethodGet, path, query, nil, nil)
		if err != nil {
			return err
		}
		if a.json && !all {
			if err := a.printJSON(ans); err != nil {
				return err
			}
		} else if a.json {
			var rows []jsontext.Value
			if err := json.Unmarshal(ans.Data, &rows); err != nil {
				return fmt.Errorf("the answer is not what this command expects: %w", err)
			}
			for _, row := range rows {
				if _, err := fmt.Fprintln(a.out, string(row)); err != nil {
					return err
				}
			}
		} else {
			var list []T
			if err := json.Unmarshal(ans.Data, &list); err != nil {
				return fmt.Errorf("the answer is not what this command expects: %w", err)
			}
			for i := range list {
				fmt.Fprintln(w, row(&list[i]))
			}
			rows += len(list)
			if err := w.Flush(); err != nil {
				return err
			}
		}
		if ans.NextCursor == nil {
			break
		}
		if !all {
			if !a.json {
				fmt.Fprintf(a.err, "%d shown, there are more: --all, or --cursor %s\n", rows, *ans.NextCursor)
			}
			break
		}
		query.Set("cursor", *ans.NextCursor)
	}
	return nil
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
		fmt.Fprintf(w, "%s\t%s\n", name, value)
	}
}
