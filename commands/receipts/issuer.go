package receipts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keytrail/keytrail/events"
)

// Status says why a run of a node does not answer as if the change had not been
// made. The set is closed.
type Status string

// The statuses of a run on a receipt; the package comment argues each.
const (
	Applied      Status = "applied"
	StartedAfter Status = "started_after"
	HasEnded     Status = "ended"
	HasLapsed    Status = "lapsed"
	Waiting      Status = "waiting" // none of them is shown yet
)

// Node is one run of a node on a receipt.
type Node struct {
	Node      events.NodeID     `json:"node"`
	Instance  events.InstanceID `json:"instance,omitzero"` // absent where the record is unreadable
	Status    Status            `json:"status"`
	Applied   events.Seq        `json:"applied"`   // up to which event its view holds the log, as it last said
	Epoch     int64             `json:"epoch"`     // of its ledger
	Decisions uint64            `json:"decisions"` // numbered in that epoch when it said so
	AgeMS     int64             `json:"age_ms"`    // how long ago this control first saw its newest record
	LifeMS    int64             `json:"life_ms"`   // for how long it may answer on its lease
	WaitMS    int64             `json:"wait_ms"`   // waiting: it has lapsed after this time at the latest; else 0
}

// Change is the change of a key, a role or a keyspace that a receipt is about.
type Change struct {
	Log      events.LogID   `json:"log"`
	Resource string         `json:"resource"` // its path, as /v1/keys/key_…
	Event    events.EventID `json:"event_id"` // its last event
	Type     events.Type    `json:"type"`
	Seq      events.Seq     `json:"seq"` // where that stands in the log
}

// Receipt says which nodes hold a change.
type Receipt struct {
	Change
	Issued   events.Time   `json:"issued_at"` // by this control's clock
	Control  events.NodeID `json:"control"`
	Complete bool          `json:"complete"` // no run is waiting: none allows any more what the change denies
	Nodes    []Node        `json:"nodes"`
}

// Refusing counts the nodes that are not waiting.
func (r *Receipt) Refusing() (n int) {
	for i := range r.Nodes {
		if r.Nodes[i].Status != Waiting {
			n++
		}
	}
	return n
}

// IssuerConfig is what an issuer needs. Nodes, Leases and Control are required.
type IssuerConfig struct {
	Nodes   *Observer
	Leases  events.Leases
	Prompts events.Prompts // nil: records alone tell what a node has applied
	Control events.NodeID
	Now     func() time.Time // the wall clock of Receipt.Issued; default time.Now
	Signer  note.Signer      // nil: receipts are not signed
	Logger  *slog.Logger     // default slog.Default()
}

// Issuer makes receipts. It is safe for concurrent use and owns nothing.
type Issuer struct {
	cfg   IssuerConfig
	waits chan struct{} // one for each wait that is under way
}

// waitsAtOnce is how many waits ask the nodes at once; others wait for their turn. Each
// hears the answers to all, so without a bound some hundred keep control and the log
// from everything else.
const waitsAtOnce = 16

// NewIssuer returns an issuer.
func NewIssuer(cfg IssuerConfig) *Issuer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Issuer{cfg: cfg, waits: make(chan struct{}, waitsAtOnce)}
}

// The pauses between two readings of the list.
const (
	lookFirst = 20 * time.Millisecond
	lookMost  = time.Second
)

// Issue waits until no node answers any more as if the change had not been made, and
// returns the receipt; when ctx ends before, what it knows then, which is not
// complete. Errors: what Raise and Nodes of events.Leases return, when ctx does not
// even leave the time to learn which nodes there are.
func (i *Issuer) Issue(ctx context.Context, c Change) (Receipt, error) {
	if err := i.cfg.Leases.Raise(ctx, events.Head{Log: c.Log, Size: c.Seq}); err != nil {
		return Receipt{}, err
	}
	since := time.Now() // the floor stands for certain
	if at, ok := i.cfg.Nodes.reached(c.Seq); ok && at.Before(since) {
		since = at
	}
	w := &waiting{seq: c.Seq, since: since, answers: map[runID]events.NodeLease{}, news: make(chan struct{}, 1)}
	sight, err := i.look(ctx, c.Seq, 0)
	if err != nil {
		return Receipt{}, err
	}
	w.floor = sight.Floor.Seq
	nodes, complete, lapse := w.judge(&sight, time.Now())
	if !complete && i.turn(ctx) {
		defer func() { <-i.waits }()
		asking, stop := context.WithCancel(ctx)
		defer stop()
		if i.cfg.Prompts != nil {
			var asked sync.WaitGroup
			defer asked.Wait()
			defer stop()
			asked.Go(func() {
				if err := i.cfg.Prompts.Ask(asking, events.Head{Log: c.Log, Size: c.Seq}, w.heard); err != nil && asking.Err() == nil {
					i.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the nodes were not asked what they have applied; their records tell it", slog.Any("err", err))
				}
			})
		}
		for pause := lookFirst; !complete; pause = min(2*pause, lookMost) {
			if w.wait(ctx, min(pause, lapse)) != nil {
				break
			}
			if newer, err := i.look(ctx, c.Seq, w.floor); err == nil {
				sight = newer
			}
			nodes, complete, lapse = w.judge(&sight, time.Now())
		}
	}
	return Receipt{Change: c, Issued: events.At(i.cfg.Now()), Control: i.cfg.Control, Complete: complete, Nodes: nodes}, nil
}

// turn waits until the wait may ask the nodes; false = ctx ended before.
func (i *Issuer) turn(ctx context.Context) bool {
	select {
	case i.waits <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// look reads the list as of a moment at which the floor held seq.
func (i *Issuer) look(ctx context.Context, seq, floor events.Seq) (Sight, error) {
	for pause := lookFirst; ; {
		s, err := i.cfg.Nodes.Look(ctx, floor)
		if err != nil || s.Floor.Seq > 0 && s.Floor.Size >= seq {
			return s, err
		}
		t := time.NewTimer(pause) // a replica that is behind
		select {
		case <-ctx.Done():
			t.Stop()
			return s, fmt.Errorf("%w: the list of nodes stands before event %d: %w", events.ErrUnavailable, seq, ctx.Err())
		case <-t.C:
		}
	}
}

// waiting is one wait for all nodes.
type waiting struct {
	seq   events.Seq
	floor events.Seq // a floor that holds seq
	since time.Time  // when such a floor stood for certain
	news  chan struct{}

	mu      sync.Mutex
	answers map[runID]events.NodeLease // the newest of each run; guarded by mu
}

// maxAnswers bounds what is kept of answers: who has a verifier's credential may
// invent runs. Only those on the list count.
const maxAnswers = 4096

func (w *waiting) heard(l events.NodeLease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := runID{l.Node, l.Instance}
	if was, ok := w.answers[id]; ok && was.Applied.Size >= l.Applied.Size || !ok && len(w.answers) == maxAnswers {
		return
	}
	w.answers[id] = l
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// errEnded is that of a wait whose context has ended.
var errEnded = errors.New("the time to wait is over")

// wait waits for an answer, at most for d.
func (w *waiting) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return errEnded
	case <-w.news:
	case <-t.C:
	}
	return nil
}

// judge says of each run on the list why it is no danger, at now. lapse is when the
// next one may lapse.
func (w *waiting) judge(s *Sight, now time.Time) (nodes []Node, complete bool, lapse time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	complete, lapse = true, lookMost
	nodes = make([]Node, len(s.Runs))
	for i := range s.Runs {
		n, r := &nodes[i], s.Runs[i]
		if a, ok := w.answers[runID{r.Node, r.Instance}]; ok && a.Applied.Size > r.Applied.Size {
			r.Applied, r.Epoch, r.Decisions = a.Applied, a.Epoch, a.Decisions
		}
		*n = Node{Node: r.Node, Instance: r.Instance, Applied: r.Applied.Size, Epoch: r.Epoch, Decisions: r.Decisions,
			AgeMS: now.Sub(r.Seen).Milliseconds(), LifeMS: r.LifeMS}
		first := r.First
		if first == 0 {
			first = r.Floor // it was granted none before this record
		}
		left := w.left(&r, now)
		switch {
		case r.State == Ended:
			n.Status = HasEnded
		case r.State != Unreadable && r.Applied.Size >= w.seq:
			n.Status = Applied
		case r.State != Unreadable && first >= w.floor:
			n.Status = StartedAfter
		case left < 0:
			n.Status = HasLapsed
		default:
			n.Status, n.WaitMS, complete = Waiting, left.Milliseconds()+1, false
			lapse = min(lapse, left+1)
		}
	}
	return nodes, complete, lapse
}

// left returns for how long the run may still answer on a lease that stands on a
// floor without the event; negative when it is over.
func (w *waiting) left(r *Run, now time.Time) time.Duration {
	asked, life := w.since, r.Life() // asked before
	if r.State == Unreadable {
		life = events.MaxLeaseLife
	} else if r.Seen.Before(asked) {
		asked = r.Seen
	}
	return over(life) - now.Sub(asked)
}
