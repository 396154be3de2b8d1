// Package parts runs what a process is made of, and stops it in order and in time.
package parts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// DefaultGrace is how long a Group may take to stop, with all its parts.
const DefaultGrace = 12 * time.Second

// Group runs parts and stops them in the reverse order of their addition, so
// that what feeds a part outlives it: the HTTP server stops first, the log last.
type Group struct {
	Logger *slog.Logger
	// Grace bounds the whole stop, DefaultGrace if zero; of a Group that is a part of
	// another one, so does what that one leaves it. What is left of it is
	// shared by the parts that are left: one share each, longShares for those of
	// GoLong. The others do not wait for a part that takes longer; it is left behind
	// if it still runs when the grace is over.
	Grace time.Duration

	parts []*part
}

// longShares is how many shares of the grace a part of GoLong has.
const longShares = 4

type part struct {
	name   string
	shares int
	run    func(context.Context) error // nil if stop is all
	stop   func(context.Context)
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when run has returned
	err    error         // of run; readable after done
}

// asked is the cause with which a Group ends the context of a part.
type asked struct{ by time.Time }

func (*asked) Error() string { return "asked to stop" }
func (*asked) Unwrap() error { return context.Canceled }

// AskedBy is the cause to cancel the context of a part with that must have stopped by
// then.
func AskedBy(by time.Time) error { return &asked{by} }

// StopBy returns when the part of a Group must have stopped, or most, if nobody
// bounds it, after its context has ended.
func StopBy(ctx context.Context, most time.Duration) time.Time {
	by := time.Now().Add(most)
	var a *asked
	if errors.As(context.Cause(ctx), &a) && a.by.Before(by) {
		return a.by
	}
	return by
}

// Go adds a part that runs until its context ends. A part that returns earlier,
// with or without an error, ends the group.
func (g *Group) Go(name string, run func(context.Context) error) {
	g.parts = append(g.parts, &part{name: name, shares: 1, run: run})
}

// GoLong is Go for a part that has work to do when it stops.
func (g *Group) GoLong(name string, run func(context.Context) error) {
	g.parts = append(g.parts, &part{name: name, shares: longShares, run: run})
}

// OnStop adds something to do at this place of the stopping order. Its context
// ends when its time is up.
func (g *Group) OnStop(name string, stop func(context.Context)) {
	g.parts = append(g.parts, &part{name: name, shares: 1, stop: stop})
}

// Run starts every part and waits for ctx to end or a part to return, then stops
// all in reverse order, within Grace whatever they do. It returns the first
// failure, nil for an orderly stop. A part that was left behind is a failure.
func (g *Group) Run(ctx context.Context) error {
	ended := make(chan *part, len(g.parts))
	for _, p := range g.parts {
		if p.run == nil {
			continue
		}
		// A part's context does not end with ctx: the order below ends it.
		pctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		p.cancel, p.done = cancel, make(chan struct{})
		go func() { // joined by stopAll, or left behind
			defer close(p.done)
			p.err = p.run(pctx)
			ended <- p
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case p := <-ended:
		if p.err == nil || errors.Is(p.err, context.Canceled) {
			p.err = errors.New("it returned before it was asked to")
		}
		err = fmt.Errorf("%s: %w", p.name, p.err)
	}
	if serr := g.stopAll(ctx); err == nil {
		err = serr
	}
	return err
}

// stopAll stops the parts one after the other.
func (g *Group) stopAll(ctx context.Context) error {
	grace := g.Grace
	if grace == 0 {
		grace = DefaultGrace
	}
	end := time.Now().Add(grace)
	if by := StopBy(ctx, grace); by.Before(end) {
		end = by.Add(-time.Until(by) / 10) // to say in time which part hangs
	}
	shares := 0
	for _, p := range g.parts {
		shares += p.shares
	}
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		limit := time.Until(end) * time.Duration(p.shares) / time.Duration(shares)
		shares -= p.shares
		if p.end(limit); !p.ended(0) {
			g.Logger.Warn("part did not stop in its share of the grace; the others stop", "part", p.name, "limit", limit)
		}
	}
	var err error
	var behind []string
	for i := len(g.parts) - 1; i >= 0; i-- {
		p := g.parts[i]
		switch {
		case !p.ended(time.Until(end)):
			behind = append(behind, p.name)
		case err == nil && p.err != nil && !errors.Is(p.err, context.Canceled):
			err = fmt.Errorf("%s: %w", p.name, p.err)
		}
	}
	if err == nil && behind != nil {
		err = fmt.Errorf("did not stop in time: %s", strings.Join(behind, ", "))
	}
	return err
}

// ended waits for the part to return, and reports whether it has within the limit.
func (p *part) ended(limit time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(limit):
	}
	select { // after a pause of the process both are ready
	case <-p.done:
		return true
	default:
		return false
	}
}

// end asks one part to stop, and waits for it within the limit.
func (p *part) end(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if p.run == nil {
		p.done = make(chan struct{})
		go func() { // joined below, or left behind
			defer close(p.done)
			p.stop(ctx)
		}()
	} else {
		by, _ := ctx.Deadline()
		p.cancel(&asked{by})
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
}
