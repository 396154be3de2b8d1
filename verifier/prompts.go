package verifier

import (
	"context"
	"log/slog"
	"time"

	"github.com/keytrail/keytrail/events"
)

// The bounds of what waits for the view: who still wants to know asks again.
const (
	maxQuestions = 64
	questionWait = 5 * time.Second
)

// RunAnswers answers the question who has applied an event, as soon as the node's
// view holds it, until ctx ends. It returns ctx's error, or why it cannot listen.
func (n *Node) RunAnswers(ctx context.Context, prompts events.Prompts) error {
	waiting := make(chan struct{}, maxQuestions)
	defer func() {
		for range maxQuestions { // those that wait end with ctx
			waiting <- struct{}{}
		}
	}()
	return prompts.Listen(ctx, func(h events.Head) {
		if n.cfg.View.At() >= h.Size {
			n.say(ctx, prompts)
			return
		}
		select {
		case waiting <- struct{}{}:
		default:
			return
		}
		go func() {
			defer func() { <-waiting }()
			ctx, cancel := context.WithTimeout(ctx, questionWait)
			defer cancel()
			if n.cfg.View.Wait(ctx, h.Size) == nil {
				n.say(ctx, prompts)
			}
		}()
	})
}

// say tells what the view holds now.
func (n *Node) say(ctx context.Context, prompts events.Prompts) {
	if n.lease.ended.Load() {
		return // Release says it
	}
	if err := prompts.Say(n.record(n.life())); err != nil {
		n.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "what this node has applied was not said", slog.Any("err", err))
	}
}
