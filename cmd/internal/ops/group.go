package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Group runs parts and stops them in the reverse order of their addition, so
// that what feeds a part outlives it: the door closes first, the log last.
type Group struct {
	Logger *slog.Logger
	// Grace is how long one part may take to stop, 10 s if zero. A part that
	// takes longer is named in the log and left behind.
	Grace time.Duration

	parts []*part
}

type part struct {
	name   string
	run    func(context.Context) error
	stop   func(context.Context)
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Go adds a part that runs until its context ends. A part that returns earlier,
// with or without an error, ends the group.
func (g *Group) Go(name string, run func(context.Context) error) {
	g.parts = append(g.parts, &part{name: name, run: run})
}

// OnStop adds something to do at this place of the stopping order.
func (g *Group) OnStop(name string, stop func(context.Context)) {
	g.parts = append(g.parts, &part{name: name, stop: stop})
}

// Run starts every part and waits for ctx to end or a part to return, then stops
// all in reverse order and returns the first failure, nil for an orderly stop.
func (g *Group) Run(ctx context.Context) error {
	ended := make(chan *part, len(g.parts))
	for _, p := range g.parts {
		if p.run == nil {
			continue
		}
		// A part's context does not end with ctx: the order below ends it.
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		p.cancel, p.done = cancel, make(chan struct{})
		go func() { // joined below, by stopPart
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
	for i := len(g.parts) - 1; i >= 0; i-- {
		if perr := g.stopPart(g.parts[i]); perr != nil && err == nil {
			err = perr
		}
	}
	return err
}

func (g *Group) stopPart(p *part) error {
	grace := g.Grace
	if grace == 0 {
		grace = 10 * time.Second
	}
	if p.stop != nil {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		p.stop(ctx)
		return nil
	}
	p.cancel()
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		g.Logger.Warn("part did not stop in time", "part", p.name, "grace", grace)
		return nil
	}
	if p.err != nil && !errors.Is(p.err, context.Canceled) {
		return fmt.Errorf("%s: %w", p.name, p.err)
	}
	return nil
}
