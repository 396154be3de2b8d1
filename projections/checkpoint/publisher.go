package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// Config says what a Publisher stands on. All but Signer, Replace, Every, Now and
// Logger is required.
type Config struct {
	Dir         string // where the tree is kept; the caller has checked it (files.MakeDataDir)
	Log         Log
	View        View
	Checkpoints events.Checkpoints

	// Signer signs. Without one the publisher serves what others have signed.
	Signer *tree.Signer
	// Replace lets Signer go on behind a checkpoint that other keys have signed.
	Replace bool
	// Every is the time between two checkpoints while the log grows. Default 1 s.
	Every time.Duration
	// Verify is the time from the start, and from the end of each check, to the next
	// check of the whole file of hashes. Default 1 h.
	Verify time.Duration
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default: nobody is told
}

// Publisher signs checkpoints, or waits for those of others, and serves them with
// the tree.
type Publisher struct {
	cfg    Config
	origin string
	tree   *Tree
	served atomic.Pointer[published]
	first  chan struct{} // closed when there is the first one

	// Owned by Run.
	waited  int    // rounds in a row in which the view was behind and stood still
	seen    uint64 // the view's size at the last round
	pending []byte // a stored checkpoint that the view has not come to yet

	mu      sync.Mutex
	problem error // of the last round; guarded by mu
}

// published is a stored checkpoint that the tree has confirmed.
type published struct {
	text []byte
	head tree.Head
	at   time.Time // when it was confirmed here
}

// New opens the tree in c.Dir. The errors are of that directory. Run closes it.
func New(c Config) (*Publisher, error) {
	if c.Every == 0 {
		c.Every = time.Second
	}
	if c.Verify == 0 {
		c.Verify = time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Publisher{cfg: c, first: make(chan struct{}), origin: tree.Origin(c.Log.ID().String())}
	if c.Signer != nil && c.Signer.Origin() != p.origin {
		return nil, fmt.Errorf("the checkpoint key signs for %q, this log is %q", c.Signer.Origin(), p.origin)
	}
	var err error
	if p.tree, err = openTree(c.Dir, c.Log, c.View, c.Logger); err != nil {
		return nil, err
	}
	return p, nil
}

// Run works until ctx ends, and returns its error. No fault of the tree or of the
// checkpoints ends it: Ready tells of it.
func (p *Publisher) Run(ctx context.Context) error {
	defer p.tree.close() // what was not synced is read again
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.verify(ctx) })
	tick := time.NewTicker(p.cfg.Every)
	defer tick.Stop()
	for {
		err := p.round(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.note(ctx, err)
		if _, fork := errors.AsType[*forkError](err); fork {
			<-ctx.Done() // C2
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// verify checks the whole file of hashes again and again: the view's root shows only
// that its right edge is good.
func (p *Publisher) verify(ctx context.Context) {
	timer := time.NewTimer(p.cfg.Verify)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		h := p.tree.hashes.Load()
		if err := h.Verify(ctx); errors.Is(err, tree.ErrStored) && h == p.tree.hashes.Load() {
			p.cfg.Logger.ErrorContext(ctx, "the file of the tree is damaged; the tree is read from the log again", "err", err)
			p.tree.damaged.Store(true)
		}
		timer.Reset(p.cfg.Verify)
	}
}

// note remembers what came of a round, and logs what is new.
func (p *Publisher) note(ctx context.Context, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil && (p.problem == nil || p.problem.Error() != err.Error()):
		p.cfg.Logger.ErrorContext(ctx, "no checkpoint is signed", "err", err)
	case err == nil && p.problem != nil:
		p.cfg.Logger.InfoContext(ctx, "checkpoints go on")
	}
	p.problem = err
}

// Ready reports why no checkpoints are signed or served, nil if they are.
func (p *Publisher) Ready() error {
	p.mu.Lock()
	err := p.problem
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if have, want := p.tree.reading(); have+progressEvery/16 < want {
		return fmt.Errorf("the tree is being read from the log: %d of %d events; checkpoints wait for it", have, want)
	}
	return nil
}

// forked reports whether two histories were seen.
func (p *Publisher) forked() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, fork := errors.AsType[*forkError](p.problem)
	return fork
}

// conflicts is how often a round begins again because another signer was first.
const conflicts = 5

// patience is how many rounds a view may be behind what was signed, and stand still.
const patience = 10

// errBehind says that the log, as far as the view has read it, is shorter than the
// tree in the directory or than a stored checkpoint.
var errBehind = errors.New("the log is shorter than what was signed of it: its end is lost, or it was restored from an older copy. " +
	"If it was not, this control cannot read its end")

// round brings the tree up to the view, and publishes its head.
func (p *Publisher) round(ctx context.Context) error {
	before := p.seen
	view := p.cfg.View.Tree()
	p.seen = view.Size()
	err := p.publish(ctx)
	if !errors.Is(err, errBehind) {
		p.waited = 0
		return err
	}
	if p.seen != before {
		p.waited = 0
	}
	if p.waited++; p.waited < patience {
		return nil
	}
	return err
}

func (p *Publisher) publish(ctx context.Context) error {
	if p.cfg.View.At() == 0 {
		return nil // nothing is proved yet, or there is nothing
	}
	if ready, err := p.tree.grow(ctx); !ready || err != nil {
		return err
	}
	for range conflicts {
		if again, err := p.advance(ctx); !again {
			return err
		}
	}
	return nil // others sign; the next round serves what they signed
}

// advance serves the newest checkpoint, and signs a newer one if it may. Again says
// that another signer was first, or may have been.
func (p *Publisher) advance(ctx context.Context) (again bool, err error) {
	own := p.tree.hashes.Load().Range()
	if s := p.served.Load(); own.Size() == 0 || s != nil && s.head.Size == own.Size() {
		return false, nil // there can be no newer one that the tree could confirm
	}
	if p.pending != nil { // under load the newest one may always be ahead of the view
		head, err := p.confirm(p.pending, own.Size())
		if err != nil {
			return false, err
		}
		if head.Size <= own.Size() {
			p.serve(p.pending, head)
			p.pending = nil
		}
	}
	last, err := p.cfg.Checkpoints.Last(ctx)
	if err != nil {
		return false, err
	}
	if last.Seq > 0 {
		head, err := p.confirm(last.Text, own.Size())
		if err == nil && head.Size > own.Size() {
			err = errBehind
			if p.pending == nil {
				p.pending = last.Text
			}
		}
		if err != nil {
			return false, err
		}
		p.serve(last.Text, head)
		if head.Size == own.Size() {
			return false, p.ours(last.Text)
		}
		if err := p.ours(last.Text); err != nil {
			return false, err
		}
	}
	if p.cfg.Signer == nil {
		return false, nil
	}
	head := own.Head(p.origin)
	text, err := p.cfg.Signer.Sign(head, p.cfg.Now())
	if err != nil {
		return false, err
	}
	// crash here, or before the answer: it is stored or not, and the next round reads it.
	switch _, err = p.cfg.Checkpoints.Append(ctx, last.Seq, text); { // C3
	case err == nil:
		p.serve(text, head)
		return false, nil
	case errors.Is(err, events.ErrConflict), errors.Is(err, events.ErrUnknownOutcome):
		return true, err
	}
	return false, err
}

// confirm returns the head of a stored checkpoint. If the tree is as large, it must
// have had that root (C2).
func (p *Publisher) confirm(text []byte, size uint64) (tree.Head, error) {
	head, err := tree.ReadHead(text)
	if err != nil {
		return head, fmt.Errorf("the newest stored checkpoint cannot be read: %w. Something other than Keytrail wrote to the stream, or its store is damaged", err)
	}
	if head.Origin != p.origin {
		return head, fmt.Errorf("the newest stored checkpoint is of %q, this log is %q: the store holds parts of two installations; restore one whole backup", head.Origin, p.origin)
	}
	if head.Size > size {
		return head, nil
	}
	root, err := rootAt(p.tree.hashes.Load(), head.Size)
	if err != nil {
		return head, err
	}
	if root != head.Root {
		return head, &forkError{fmt.Sprintf("the newest stored checkpoint says that the first %d events have the root %s; in the log that this control has applied they have %s. "+
			"One of the two histories was altered, or restored from an older copy and written on. Nothing is signed. Find out which history is right", head.Size, head.Root, root)}
	}
	return head, nil
}

// ours refuses to go on behind a checkpoint that other keys have signed, unless they
// are replaced.
func (p *Publisher) ours(text []byte) error {
	if p.cfg.Signer == nil || p.cfg.Replace {
		return nil
	}
	if _, err := p.cfg.Signer.Verifier().Open(text); err != nil {
		return fmt.Errorf("the newest stored checkpoint is not signed by the keys of this control (%w). Give every control the same checkpoint key file; "+
			"if the keys were replaced on purpose, start control once with --replace-checkpoint-key, and give the new public keys to whoever verifies", err)
	}
	return nil
}

// serve publishes a checkpoint that is stored and confirmed (C3, C5).
func (p *Publisher) serve(text []byte, head tree.Head) {
	s := p.served.Load()
	if s != nil && s.head.Size >= head.Size {
		return
	}
	p.served.Store(&published{text: text, head: head, at: p.cfg.Now()})
	if s == nil {
		close(p.first)
	}
}
