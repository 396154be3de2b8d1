package audit

import (
	"encoding/csv"
	"io"
	"net/netip"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
)

// column is one column of an export of rows R, in both formats. A dot in its name
// makes a member of a member in JSON and is '_' in CSV: actor.id, actor_id. A
// value without kind is absent: no member, an empty cell.
type column[R any] struct {
	name  string
	value func(*R) jsontext.Token
	json  func(*R) (jsontext.Value, error) // in place of value: any JSON
}

func absent(t jsontext.Token) bool { return t.Kind() == jsontext.Token{}.Kind() }

// text is a cell that is absent when it is empty.
func text[S ~string](s S) jsontext.Token {
	if s == "" {
		return jsontext.Token{}
	}
	return jsontext.String(string(s))
}

func count[N ~uint32 | ~uint64](n N) jsontext.Token { return jsontext.Uint(uint64(n)) }

func address(a netip.Addr) jsontext.Token {
	if !a.IsValid() {
		return jsontext.Token{}
	}
	return jsontext.String(a.String())
}

// eventColumnsOut are the columns of an export of the trail: all that the log has
// of an event. As JSON a line has the members that the endpoint shows, and more.
var eventColumnsOut = []column[events.Recorded]{
	{name: "seq", value: func(r *events.Recorded) jsontext.Token { return count(r.Seq) }},
	{name: "id", value: func(r *events.Recorded) jsontext.Token { return text(r.ID.String()) }},
	{name: "type", value: func(r *events.Recorded) jsontext.Token { return text(r.Type()) }},
	{name: "time", value: func(r *events.Recorded) jsontext.Token { return text(r.Time.String()) }},
	{name: "stored", value: func(r *events.Recorded) jsontext.Token { return text(r.Stored.String()) }},
	{name: "keyspace", value: func(r *events.Recorded) jsontext.Token { return text(r.Aggregate.Keyspace) }},
	{name: "tenant", value: func(r *events.Recorded) jsontext.Token {
		if r.Aggregate.Tenant == events.NoTenant {
			return jsontext.Token{}
		}
		return text(r.Aggregate.Tenant)
	}},
	{name: "subject", value: func(r *events.Recorded) jsontext.Token { return text(r.Aggregate.String()) }},
	{name: "kind", value: func(r *events.Recorded) jsontext.Token { return text(r.Aggregate.Kind) }},
	{name: "aggregate_id", value: func(r *events.Recorded) jsontext.Token { return text(r.Aggregate.ID) }},
	{name: "key_id", value: func(r *events.Recorded) jsontext.Token { return text(r.Key().String()) }},
	{name: "rev", value: func(r *events.Recorded) jsontext.Token { return count(r.Rev) }},
	{name: "actor.kind", value: func(r *events.Recorded) jsontext.Token { return text(r.Actor.Kind) }},
	{name: "actor.id", value: func(r *events.Recorded) jsontext.Token { return text(r.Actor.ID) }},
	{name: "ip", value: func(r *events.Recorded) jsontext.Token { return address(r.IP) }},
	{name: "user_agent", value: func(r *events.Recorded) jsontext.Token { return text(r.UserAgent) }},
	{name: "request_id", value: func(r *events.Recorded) jsontext.Token { return text(r.RequestID) }},
	{name: "reason", value: func(r *events.Recorded) jsontext.Token { return text(r.Reason) }},
	{name: "source", value: func(r *events.Recorded) jsontext.Token { return text(r.Source) }},
	{name: "command", value: func(r *events.Recorded) jsontext.Token { return text(r.Command) }},
	{name: "prev", value: func(r *events.Recorded) jsontext.Token {
		if r.Prev.IsZero() {
			return jsontext.Token{}
		}
		return text(r.Prev.String())
	}},
	{name: "hash", value: func(r *events.Recorded) jsontext.Token { return text(r.Hash.String()) }},
	{name: "data", json: func(r *events.Recorded) (jsontext.Value, error) {
		return json.Marshal(r.Data, json.Deterministic(true))
	}},
}

// useColumnsOut are the columns of an export of the ledger.
var useColumnsOut = []column[UseRow]{
	{name: "id", value: func(u *UseRow) jsontext.Token { return text(u.ID.String()) }},
	{name: "time", value: func(u *UseRow) jsontext.Token { return text(u.Time.String()) }},
	{name: "stored", value: func(u *UseRow) jsontext.Token { return text(u.Stored.String()) }},
	{name: "node", value: func(u *UseRow) jsontext.Token { return text(u.ID.Node) }},
	{name: "epoch", value: func(u *UseRow) jsontext.Token { return jsontext.Int(u.ID.Epoch) }},
	{name: "n", value: func(u *UseRow) jsontext.Token { return count(u.ID.N) }},
	{name: "keyspace", value: func(u *UseRow) jsontext.Token { return text(u.Keyspace) }},
	{name: "tenant", value: func(u *UseRow) jsontext.Token { return text(u.Tenant) }},
	{name: "key_id", value: func(u *UseRow) jsontext.Token { return text(u.Key.String()) }},
	{name: "allowed", value: func(u *UseRow) jsontext.Token { return jsontext.Bool(u.Reason.Allowed()) }},
	{name: "reason", value: func(u *UseRow) jsontext.Token { return text(u.Reason.String()) }},
	{name: "scope", value: func(u *UseRow) jsontext.Token { return text(u.Scope) }},
	{name: "resource.kind", value: func(u *UseRow) jsontext.Token { return text(u.Resource.Kind) }},
	{name: "resource.id", value: func(u *UseRow) jsontext.Token { return text(u.Resource.ID) }},
	{name: "ip", value: func(u *UseRow) jsontext.Token { return address(u.IP) }},
	{name: "cost", value: func(u *UseRow) jsontext.Token { return count(u.Cost) }},
	{name: "endpoint", value: func(u *UseRow) jsontext.Token { return text(u.Endpoint) }},
	{name: "request_id", value: func(u *UseRow) jsontext.Token { return text(u.RequestID.String()) }},
	{name: "decided_seq", value: func(u *UseRow) jsontext.Token { return count(u.Use.Seq) }},
	{name: "seq", value: func(u *UseRow) jsontext.Token { return count(u.Seq) }},
}

// csvRows returns what writes a row as CSV; it writes the header first. A value
// stands as it is: a cell that starts with = + - or @ is not changed, because a
// copy of the record is exact. Open it in a spreadsheet as text.
func csvRows[R any](columns []column[R], out io.Writer) (func(*R) error, error) {
	w := csv.NewWriter(out)
	cells := make([]string, len(columns))
	flush := func() error {
		if err := w.Write(cells); err != nil {
			return err
		}
		w.Flush()
		return w.Error()
	}
	for i, c := range columns {
		cells[i] = strings.ReplaceAll(c.name, ".", "_")
	}
	return func(r *R) error {
		for i, c := range columns {
			cells[i] = ""
			if c.json != nil {
				v, err := c.json(r)
				if err != nil {
					return err
				}
				cells[i] = string(v)
			} else if t := c.value(r); !absent(t) {
				cells[i] = t.String()
			}
		}
		return flush()
	}, flush()
}

// jsonRows returns what writes a row as one line of JSON.
func jsonRows[R any](columns []column[R], out io.Writer) (func(*R) error, error) {
	e := jsontext.NewEncoder(out)
	return func(r *R) error {
		err := e.WriteToken(jsontext.BeginObject)
		write := func(t jsontext.Token) {
			if err == nil {
				err = e.WriteToken(t)
			}
		}
		in := "" // the member whose members are being written
		for _, c := range columns {
			outer, name, dotted := strings.Cut(c.name, ".")
			if !dotted {
				outer, name = "", c.name
			}
			if in != "" && in != outer {
				write(jsontext.EndObject)
				in = ""
			}
			if c.json != nil {
				v, verr := c.json(r)
				if verr != nil {
					return verr
				}
				write(jsontext.String(name))
				if err == nil {
					err = e.WriteValue(v)
				}
				continue
			}
			t := c.value(r)
			if absent(t) {
				continue
			}
			if in != outer {
				write(jsontext.String(outer))
				write(jsontext.BeginObject)
				in = outer
			}
			write(jsontext.String(name))
			write(t)
		}
		if in != "" {
			write(jsontext.EndObject)
		}
		write(jsontext.EndObject)
		return err
	}, nil
}
