package commands

import (
	"context"
	"errors"
	"fmt"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// maxTries bounds how often a command is decided again because the history moved
// on. Each conflict means that another command went through.
const maxTries = 32

// task is one command on one aggregate whose events fold into an S.
type task[S any] struct {
	scope     string // of the built-in keyspace, which the caller must hold
	aggregate events.Aggregate
	existing  bool // it is about a key that is there; who may not see the key is told that there is none
	batched   bool // the caller acknowledges it, together with others
	fold      func([]events.Recorded) (S, error)
	decide    func(own *power, b *batch, s *S) (S, error)
}

type outcome[S any] struct {
	state    S
	seq      events.Seq
	replayed bool
}

// run is the one pipeline of every command: load, catch up, take the caller's
// power as it is now, answer a replay, decide, guard, hold the precondition,
// append, and again when the history has moved on; then acknowledge, also what a
// refusal tells. The view is caught up with after the load, so the decision stands on a view that is not older
// than the history (C3).
//
// Commands on the built-in keyspace take turns on this node: a guard judges all of
// its keys and roles, and an append holds the history of one. Otherwise two
// administrators who disable each other at one moment would both be the other's
// last one.
func run[S any, P interface {
	*S
	revised
}](ctx context.Context, h *Handler, call *Call, t task[S]) (out outcome[S], err error) {
	if t.aggregate.Keyspace == events.Builtin {
		release, err := h.names.take(ctx, name{keyspace: events.Builtin}) // of no key; held after a key's name, never before
		if err != nil {
			return out, err
		}
		defer release()
	}
	defer func() {
		var fields input.FieldErrors
		if _, refused := errors.AsType[*Refusal](err); !t.batched && (refused || errors.As(err, &fields)) {
			if unproved := h.shown(ctx); unproved != nil { // "already revoked" says that it is
				err = unproved
			}
		}
	}()
	for range maxTries {
		var history []events.Recorded
		if t.aggregate.Validate() == nil { // else it has none, and Decide reports the fault
			if history, err = h.cfg.Log.Load(ctx, t.aggregate); err != nil {
				return out, err
			}
		}
		state, err := t.fold(history)
		if err != nil {
			return out, err
		}
		if _, err := h.catchUp(ctx); err != nil {
			return out, err
		}
		var seq events.Seq // where the history ends
		if n := len(history); n > 0 {
			seq = history[n-1].Seq
		}
		if err := h.see(ctx, seq); err != nil { // it may end in what is not acknowledged yet
			return out, err
		}
		b := h.batch(call)
		own, err := h.caller(&call.Principal, t.scope, b.now)
		if err != nil {
			return out, err
		}
		if err := mayAsk(h, own, &t, &state); err != nil {
			return out, err
		}
		if r, err := replayed(history, call.Command); err != nil {
			return out, err
		} else if r != nil {
			return outcome[S]{state, r.Seq, true}, h.acknowledge(ctx, t.batched, seq)
		}
		after, err := t.decide(own, b, &state)
		if err != nil && h.outran(t.aggregate, seq) {
			continue
		}
		if err != nil {
			return out, err
		}
		if len(b.writes) > 0 {
			if err := h.guard(own, b); err != nil {
				return out, err
			}
		}
		// RFC 9110, section 13.2.1: what would be refused anyway is refused as that.
		if err := call.If.check(P(&state)); err != nil {
			return out, err
		}
		if len(b.writes) > 0 {
			if err := h.reserved(b); err != nil {
				return out, err
			}
		}
		if len(b.writes) == 0 {
			return outcome[S]{state, seq, false}, h.acknowledge(ctx, t.batched, seq)
		}
		// crash here: nothing is stored.
		seq, err = store(ctx, h.cfg.Log, b.writes)
		// crash here: the events are stored and not acknowledged; verifiers apply them
		// all the same, and the command's retry acknowledges them.
		if err == nil {
			if err := h.acknowledge(ctx, t.batched, seq); err != nil {
				return out, err
			}
			h.applied(ctx, seq)
			return outcome[S]{after, seq, false}, nil
		}
		if !errors.Is(err, events.ErrConflict) {
			return out, err
		}
	}
	return out, fmt.Errorf("decided %d times: %w", maxTries, events.ErrConflict)
}

// outran reports whether the view holds more of a key than its history, which was
// loaded before and ends at seq. A refusal may then be of what this very command has
// done in another try, or on another node: the name that is taken is the key's own.
func (h *Handler) outran(a events.Aggregate, seq events.Seq) bool {
	if a.Kind != events.KindKey {
		return false
	}
	id, err := events.ParseKeyID(a.ID)
	if err != nil {
		return false
	}
	k, ok := h.cfg.Dir.Key(id)
	return ok && k.Seq > seq
}

// mayAsk refuses a caller that may not know of the task's key or aggregate.
func mayAsk[S any](h *Handler, own *power, t *task[S], state *S) error {
	if k, ok := any(state).(*events.Key); ok && t.existing {
		if !k.Exists() || !sees(&own.Principal, k) {
			return notFound(k.Exists(), "there is no key %s", t.aggregate.ID)
		}
		return nil
	}
	return h.reaches(&own.Principal, t.aggregate)
}

func foldKeyspace(history []events.Recorded) (ks events.Keyspace, err error) {
	for i := range history {
		if ks, err = ks.Next(&history[i]); err != nil {
			return ks, err
		}
	}
	return ks, nil
}

func foldRole(history []events.Recorded) (role events.Role, err error) {
	for i := range history {
		if role, err = role.Next(&history[i]); err != nil {
			return role, err
		}
	}
	return role, nil
}

// batch returns an empty batch whose events carry the call's envelope.
func (h *Handler) batch(call *Call) *batch {
	p := &call.Principal
	now := events.At(h.cfg.Now())
	return &batch{now: now, readers: h.cfg.Log.Readers(), seal: func(e *events.Event) error {
		id, err := h.ulid(now)
		e.ID = events.EventID(id)
		e.Source = h.source
		e.Command = call.Command
		e.Actor = p.Actor
		e.IP = p.IP.Unmap().WithZone("")
		e.UserAgent = api.Plain(p.UserAgent, 256)
		e.RequestID = api.Plain(p.RequestID, 64)
		e.Reason = call.Reason
		return err
	}}
}

func (h *Handler) ulid(now events.Time) (ulid.ULID, error) {
	id, err := ulid.New(uint64(now), h.cfg.Rand)
	if err != nil {
		return id, fmt.Errorf("draw an id: %w", err)
	}
	return id, nil
}
