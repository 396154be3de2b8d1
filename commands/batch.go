package commands

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
)

// batch collects the events of one command as the writes of one Append (C2), and
// what they change, for the guards.
type batch struct {
	now     events.Time
	seal    func(*events.Event) error // fills in the envelope, but for the place in the history
	readers events.Release            // in which versions events are written
	writes  []events.Write
	keys    []change[events.Key]
	roles   []change[events.Role]
	tenants []change[events.Tenant]
	made    map[events.Digest]bool // of keys that the command makes, beside those of writes
}

// change is one aggregate before and after a batch.
type change[S any] struct{ before, after S }

// add appends data as the next event of an aggregate whose history stands at c.
// The record it returns is what the log will hold, but for Seq and Stored; it
// serves to fold the state after it.
func (b *batch) add(a events.Aggregate, c events.Chain, last events.Time, data events.Data) (events.Recorded, error) {
	e := events.Event{
		Aggregate: a,
		// Clocks of nodes differ; a history that reads in order does not go back.
		Time: max(b.now, last),
		Rev:  c.Rev + 1,
		Prev: c.Head,
		Data: data,
	}
	if err := b.seal(&e); err != nil {
		return events.Recorded{}, err
	}
	w := events.Write{Event: e, Expect: c.Seq, Readers: b.readers}
	m, err := w.Prepare()
	if err != nil {
		return events.Recorded{}, err
	}
	b.writes = append(b.writes, w)
	return m.Record(e, c.Seq+1, 0), nil
}

// key adds data to the history of a key and returns the key after it.
func (b *batch) key(a events.Aggregate, k *events.Key, data events.Data) (events.Key, error) {
	rec, err := b.add(a, k.Chain, k.UpdatedAt, data)
	if err != nil {
		return *k, err
	}
	after, err := k.Next(&rec)
	if i := slices.IndexFunc(b.keys, func(c change[events.Key]) bool { return c.after.ID == after.ID }); i >= 0 {
		b.keys[i].after = after
	} else {
		b.keys = append(b.keys, change[events.Key]{*k, after})
	}
	return after, err
}

// role adds data to the history of a role and returns the role after it.
func (b *batch) role(a events.Aggregate, r *events.Role, data events.Data) (events.Role, error) {
	rec, err := b.add(a, r.Chain, r.UpdatedAt, data)
	if err != nil {
		return *r, err
	}
	after, err := r.Next(&rec)
	b.roles = append(b.roles, change[events.Role]{*r, after})
	return after, err
}

// tenant adds data to the history of a tenant and returns the tenant after it.
func (b *batch) tenant(a events.Aggregate, t *events.Tenant, data events.Data) (events.Tenant, error) {
	rec, err := b.add(a, t.Chain, t.UpdatedAt, data)
	if err != nil {
		return *t, err
	}
	after, err := t.Next(&rec)
	b.tenants = append(b.tenants, change[events.Tenant]{*t, after})
	return after, err
}

// keyspace adds data to the history of a keyspace and returns it after that.
func (b *batch) keyspace(a events.Aggregate, ks *events.Keyspace, data events.Data) (events.Keyspace, error) {
	rec, err := b.add(a, ks.Chain, ks.UpdatedAt, data)
	if err != nil {
		return *ks, err
	}
	return ks.Next(&rec)
}

// onlyStops reports whether the batch does nothing but disable or revoke.
func (b *batch) onlyStops() bool {
	return !slices.ContainsFunc(b.writes, func(w events.Write) bool {
		t := w.Event.Type()
		return t != events.TypeKeyDisabled && t != events.TypeKeyRevoked
	})
}

// settleBudget is how long an append with an unknown outcome is pursued.
const settleBudget = 10 * time.Second

// store appends the writes and settles an unknown outcome: it appends the very
// same writes again until the answer is definite. It goes on when the caller has
// gone away: what was begun is either in the log or not, and somebody may retry
// it. It returns the sequence of the last write, events.ErrConflict when the
// histories have moved on without these writes, or events.ErrUnknownOutcome when
// the budget has run out (with events.ErrNotStoring where the log stores nothing).
func store(ctx context.Context, log events.Log, writes []events.Write) (events.Seq, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleBudget)
	defer cancel()
	seq, err := log.Append(ctx, writes...)
	if !errors.Is(err, events.ErrUnknownOutcome) || errors.Is(err, events.ErrNotStoring) {
		return seq, err
	}
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		// crash here: the events are in the log or they are not; the client's retry
		// under its Idempotency-Key finds out.
		seq, err = log.Append(ctx, writes...)
		switch {
		case err == nil:
			return seq, nil
		case errors.Is(err, events.ErrNotStoring): // no try is confirmed before an operator has mended it
			return 0, err
		case errors.Is(err, events.ErrUnknownOutcome), errors.Is(err, events.ErrUnavailable):
			// Still unknown: ErrUnavailable speaks of this try only.
		default:
			seq, found, lerr := stored(ctx, log, writes)
			if lerr == nil && found {
				return seq, nil
			}
			if lerr == nil {
				return 0, err
			}
		}
		pause(ctx, wait)
		if ctx.Err() != nil {
			return 0, fmt.Errorf("append %d event(s): %w", len(writes), events.ErrUnknownOutcome)
		}
	}
}

// stored looks for the last of the writes in its history. They were stored all
// or none.
func stored(ctx context.Context, log events.Log, writes []events.Write) (events.Seq, bool, error) {
	last := &writes[len(writes)-1].Event
	history, err := log.Load(ctx, last.Aggregate)
	if err != nil {
		return 0, false, err
	}
	for i := range history {
		if history[i].ID == last.ID {
			return history[i].Seq, true, nil
		}
	}
	return 0, false, nil
}
