package commands

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// The budgets of what a request waits for: proofBudget for the proof that this node
// sees all that was acknowledged, and for its view to hold it; raiseBudget for the
// floor, which outlasts the election of a new leader; applyBudget for the view to
// hold what was written.
const (
	proofBudget = 3 * time.Second
	raiseBudget = 10 * time.Second
	applyBudget = time.Second
)

// catchUp waits until this node's view holds everything that was acknowledged, by
// whichever node, when it was called (C3). A node that is cut off from the log's
// majority cannot learn what that is, and so fails: no answer and no refusal rests
// on what a deposed leader says. A node whose view is of another history than the
// floor fails too. It returns up to where commands are acknowledged.
func (h *Handler) catchUp(ctx context.Context) (events.Seq, error) {
	ctx, cancel := context.WithTimeout(ctx, proofBudget)
	defer cancel()
	floor, err := h.confirm(ctx)
	if err == nil {
		err = h.cfg.Dir.Expect(floor.Head)
	}
	if _, corrupt := errors.AsType[*events.CorruptError](err); corrupt {
		return 0, &events.StateError{Class: events.ErrUnavailable, Cause: err,
			Reason: "this node has followed another history of the log than the one in which changes are acknowledged; its own log names both"}
	}
	if err != nil {
		return 0, &events.StateError{Class: events.ErrUnavailable, Cause: err,
			Reason: "this node cannot prove that it sees every acknowledged change: a majority of the log's servers does not confirm it"}
	}
	return floor.Size, h.see(ctx, floor.Size)
}

// confirm asks again while the budget lasts: a connection may be on its way to
// another server.
func (h *Handler) confirm(ctx context.Context) (events.Floor, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		floor, err := h.cfg.Confirm(ctx)
		if err == nil || ctx.Err() != nil || !errors.Is(err, events.ErrUnavailable) {
			return floor, err
		}
		pause(ctx, wait)
	}
}

// see waits until this node's view holds the event, proofBudget at most.
func (h *Handler) see(ctx context.Context, seq events.Seq) error {
	ctx, cancel := context.WithTimeout(ctx, proofBudget)
	defer cancel()
	if err := h.cfg.Dir.Wait(ctx, seq); err != nil {
		return &events.StateError{Class: events.ErrUnavailable, Cause: err,
			Reason: fmt.Sprintf("this node's view stands at event %d, and has not reached event %d yet", h.cfg.Dir.At(), seq)}
	}
	return nil
}

// acknowledge makes sure, before a command is answered as carried out, that no node
// renews its lease any more without the command's last event. The floor gets the head
// of the view, when that holds the event. It goes on when the caller has gone away. An error is of class events.ErrUnknownOutcome: the events
// are stored, and may not hold everywhere within the bounds; the same command again
// finds them and acknowledges them.
func acknowledge(ctx context.Context, log events.Log, leases events.Leases, dir *projections.Directory, seq events.Seq) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), raiseBudget)
	defer cancel()
	err := dir.Wait(ctx, seq)
	h := headOf(log, dir)
	if err != nil || h.Size < seq { // a view of another history takes its position back
		return fmt.Errorf("acknowledge event %d: %w: this node's view stands at event %d", seq, events.ErrUnknownOutcome, h.Size)
	}
	return raise(ctx, leases, h)
}

// headOf returns how far the view is, as a head of the log.
func headOf(log events.Log, dir *projections.Directory) events.Head {
	at, root := dir.Head()
	return events.Head{Log: log.ID(), Size: at, Root: root}
}

// raise raises the floor to h, trying until ctx ends.
func raise(ctx context.Context, leases events.Leases, h events.Head) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := leases.Raise(ctx, h)
		if err == nil {
			return nil
		}
		again := (errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome)) && !errors.Is(err, events.ErrNotStoring)
		if again {
			pause(ctx, wait)
		}
		if !again || ctx.Err() != nil {
			return fmt.Errorf("acknowledge event %d: %w: %w", h.Size, events.ErrUnknownOutcome, err)
		}
	}
}

func (h *Handler) acknowledge(ctx context.Context, batched bool, seq events.Seq) error {
	if batched {
		return nil
	}
	return acknowledge(ctx, h.cfg.Log, h.cfg.Leases, h.cfg.Dir, seq)
}

// applied waits a little for this node's view to hold what was just written, so
// that a list read next shows it. It does not have to: the position says when.
func (h *Handler) applied(ctx context.Context, seq events.Seq) {
	ctx, cancel := context.WithTimeout(ctx, applyBudget)
	defer cancel()
	_ = h.cfg.Dir.Wait(ctx, seq) // the write is durable either way
}

// shown makes sure that all which an answer may rest on is acknowledged before it is
// told: this node's view may hold what a node stored and did not acknowledge. An
// error is of class events.ErrUnavailable; nothing may be answered then.
func (h *Handler) shown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), proofBudget)
	defer cancel()
	head := headOf(h.cfg.Log, h.cfg.Dir)
	err := h.cfg.Dir.Expect(head) // a view that turned out to be of another history has taken its position back
	if err == nil {
		err = h.cfg.Leases.Raise(ctx, head)
	}
	if err != nil {
		return &events.StateError{Class: events.ErrUnavailable, Cause: err,
			Reason: "this node cannot make sure that every node learns of what it would answer"}
	}
	return nil
}

// Run raises the floor to what this node's view holds once it has caught up, until
// ctx ends: so the floor has a root, and whoever resumes compares itself with it, even
// if no command comes. It returns ctx's error, or the *events.CorruptError of a view
// of another history than the floor's.
func (h *Handler) Run(ctx context.Context) error {
	for {
		_, err := h.catchUp(ctx)
		if err == nil {
			err = h.shown(ctx)
		}
		if err == nil {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if corrupt, ok := errors.AsType[*events.CorruptError](err); ok {
			return corrupt
		}
		pause(ctx, time.Second)
	}
}

// current makes a reading endpoint answer what is proved: its view holds all that
// was acknowledged before the request, the caller's key by that view still holds the
// scope, and whatever it shows beyond is acknowledged before it is shown. Else the
// answer is 503, also where the endpoint would refuse.
func (h *Handler) current(scope string, serve func(*request) (*answer, error)) func(*request) (*answer, error) {
	return func(r *request) (*answer, error) {
		if r.Method != http.MethodGet {
			return serve(r) // a command proves it by itself
		}
		if _, err := h.catchUp(r.Context()); err != nil {
			return nil, err
		}
		own, err := h.caller(&r.Who, scope, events.At(h.cfg.Now()))
		if err == nil {
			r.Who = own.Principal
		}
		var a *answer
		if err == nil {
			a, err = serve(r)
		}
		if err := h.shown(r.Context()); err != nil {
			return nil, err
		}
		return a, err
	}
}
