package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// maxTries bounds how often a command is decided again because the history moved
// on. Each conflict means that another command went through.
const maxTries = 32

// catchUpBudget is how long a command waits for this node's own view, and
// applyBudget how long an answer waits for it to hold what was written.
const (
	catchUpBudget = 5 * time.Second
	applyBudget   = time.Second
)

// task is one command on one aggregate whose events fold into an S.
type task[S any] struct {
	aggregate events.Aggregate
	fold      func([]events.Recorded) (S, error)
	guard     func(*S) error // nil, or why the caller may not know of it; may be nil itself
	decide    func(*batch, *S) (S, error)
}

type outcome[S any] struct {
	state    S
	seq      events.Seq
	replayed bool
}

// run is the loop of every command: load, answer a replay, decide, append, and
// again when the history has moved on. The caller has caught up (C3).
func run[S any](ctx context.Context, h *Handler, call *Call, t task[S]) (out outcome[S], err error) {
	for range maxTries {
		history, err := h.cfg.Log.Load(ctx, t.aggregate)
		if err != nil {
			return out, err
		}
		state, err := t.fold(history)
		if err != nil {
			return out, err
		}
		if t.guard != nil {
			if err := t.guard(&state); err != nil {
				return out, err
			}
		}
		if r, err := replayed(history, call.Command); err != nil {
			return out, err
		} else if r != nil {
			return outcome[S]{state, r.Seq, true}, nil
		}
		b := h.batch(call)
		if err := h.standing(&call.Principal, b.now); err != nil {
			return out, err
		}
		after, err := t.decide(b, &state)
		if err != nil {
			return out, err
		}
		if len(b.writes) == 0 {
			var seq events.Seq
			if n := len(history); n > 0 {
				seq = history[n-1].Seq
			}
			return outcome[S]{state, seq, false}, nil
		}
		seq, err := store(ctx, h.cfg.Log, b.writes)
		if err == nil {
			h.applied(ctx, seq)
			return outcome[S]{after, seq, false}, nil
		}
		if !errors.Is(err, events.ErrConflict) {
			return out, err
		}
		if err := h.catchUp(ctx); err != nil {
			return out, err
		}
	}
	return out, fmt.Errorf("decided %d times: %w", maxTries, events.ErrConflict)
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
	return &batch{now: now, seal: func(e *events.Event) error {
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

// catchUp waits until this node's view holds everything that the log held when
// it was called (C3).
func (h *Handler) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpBudget)
	defer cancel()
	last, err := h.cfg.Log.Last(ctx)
	if err != nil {
		return err
	}
	if err := h.cfg.Dir.Wait(ctx, last); err != nil {
		return fmt.Errorf("%w: this node's view stands at %d of %d: %w", events.ErrUnavailable, h.cfg.Dir.At(), last, err)
	}
	return nil
}

// applied waits a little for this node's view to hold what was just written, so
// that a list read next shows it. It does not have to: the position says when.
func (h *Handler) applied(ctx context.Context, seq events.Seq) {
	for old := h.wrote.Load(); old < uint64(seq) && !h.wrote.CompareAndSwap(old, uint64(seq)); old = h.wrote.Load() {
	}
	ctx, cancel := context.WithTimeout(ctx, applyBudget)
	defer cancel()
	_ = h.cfg.Dir.Wait(ctx, seq) // the write is durable either way
}
