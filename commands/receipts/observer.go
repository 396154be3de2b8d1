package receipts

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Leases lists the leases of all nodes; events.Leases is one.
type Leases interface {
	Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error)
}

// State says what an observer knows of one run of a node.
type State string

// The states of a run.
const (
	Live       State = "live"       // it may answer
	Ended      State = "ended"      // its record says that it has stopped
	Lapsed     State = "lapsed"     // its record was not renewed for the life of its lease: it answers no more
	Unreadable State = "unreadable" // its record is not as Keytrail writes it
)

// drift is by which part of its length two steady clocks may measure one time
// differently: 1 %, twenty times what a computer's clock is adjusted by (500 ppm).
const drift = 100

// over returns for how long a lease is waited for.
func over(life time.Duration) time.Duration { return life + life/drift }

// Run is one run of a node as an observer has seen it. Of an unreadable record only
// Node and State are known.
type Run struct {
	events.StoredLease
	State State
	Seen  time.Time // when the observer first saw this record, so not before it was stored
}

// Sight is the list of all runs as of one moment.
type Sight struct {
	Floor events.Floor
	At    time.Time // by the observer's steady clock, when the list had come
	Runs  []Run     // by node, then by record; unreadable ones last
}

// Observer watches the records of all nodes, and notes by its own steady clock when
// it first saw each. It is safe for concurrent use.
type Observer struct {
	leases Leases
	logger *slog.Logger

	mu     sync.Mutex
	seen   map[runID]sighting // guarded by mu
	floors []sighting         // which floors were seen when: seq is the size; guarded by mu
	last   Sight              // the newest; guarded by mu
	blind  bool               // leases left no record when the list came last; guarded by mu
}

type runID struct {
	node     events.NodeID
	instance events.InstanceID
}

type sighting struct {
	seq events.Seq
	at  time.Time
}

// NewObserver returns an observer that has seen nothing yet.
func NewObserver(leases Leases, logger *slog.Logger) *Observer {
	return &Observer{leases: leases, logger: logger, seen: map[runID]sighting{}}
}

// observeEvery is how often Run looks. The metrics are as old at the most.
const observeEvery = 2 * time.Second

// Run looks at the records now and then until ctx ends, and returns its error. So
// the observer knows for how long a node that is gone has been gone.
func (o *Observer) Run(ctx context.Context) error {
	tick := time.NewTicker(observeEvery)
	defer tick.Stop()
	for failing := false; ; {
		_, err := o.Look(ctx, 0)
		if err != nil && !failing && ctx.Err() == nil {
			o.logger.LogAttrs(ctx, slog.LevelWarn, "the nodes' leases cannot be read; trying again", slog.Any("err", err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Look reads the list as of a moment at which the floor stood at atLeast or later.
// Errors: events.ErrUnavailable.
func (o *Observer) Look(ctx context.Context, atLeast events.Seq) (Sight, error) {
	asked := time.Now()
	list, err := o.leases.Nodes(ctx, atLeast)
	if err != nil {
		return Sight{}, err
	}
	return o.saw(&list, asked, time.Now()), nil
}

// saw notes a list that was asked for at asked and had come at now: what it holds was
// stored before now, and stood as the newest at asked or later.
func (o *Observer) saw(list *events.NodeLeases, asked, now time.Time) Sight {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := Sight{Floor: list.Floor, At: now, Runs: make([]Run, 0, len(list.Leases)+len(list.Unreadable))}
	there := map[runID]bool{}
	// While leases leave no record each run may be granted one, and might have been
	// until just before this list: whoever has not ended is waited for from here on.
	blind := list.Unrecorded || o.blind
	o.blind = list.Unrecorded
	for _, l := range list.Leases {
		id := runID{l.Node, l.Instance}
		there[id] = true
		if l.Seq > o.seen[id].seq || blind {
			o.seen[id] = sighting{l.Seq, now}
		}
		r := Run{StoredLease: l, State: Live, Seen: now}
		if was := o.seen[id]; was.seq == l.Seq { // else a list that is older than one that came before
			r.Seen = was.at
		}
		switch {
		case l.State == events.LeaseEnded:
			r.State = Ended
		case asked.Sub(r.Seen) > over(l.Life()): // it may have been renewed since
			r.State = Lapsed
		}
		s.Runs = append(s.Runs, r)
	}
	slices.SortStableFunc(s.Runs, func(a, b Run) int { return strings.Compare(string(a.Node), string(b.Node)) })
	unreadable := slices.Clone(list.Unreadable)
	slices.Sort(unreadable)
	for _, node := range slices.Compact(unreadable) {
		s.Runs = append(s.Runs, Run{StoredLease: events.StoredLease{NodeLease: events.NodeLease{Node: node}}, State: Unreadable, Seen: now})
	}
	if s.Floor.Seq < o.last.Floor.Seq {
		return s
	}
	maps.DeleteFunc(o.seen, func(id runID, _ sighting) bool { return !there[id] })
	if n := len(o.floors); s.Floor.Seq > 0 && (n == 0 || o.floors[n-1].seq < s.Floor.Size) {
		o.floors = append(o.floors, sighting{s.Floor.Size, now})
		if len(o.floors) > maxFloors {
			o.floors = slices.Delete(o.floors, 0, maxFloors/4) // an older event is then waited for longer
		}
	}
	o.last = s
	return s
}

// maxFloors bounds what is kept of floors: an hour of a log that grows in each
// period.
const maxFloors = 2048

// reached returns a moment at which the floor held seq for certain, the earliest
// that the observer knows; ok is false when it has seen no such floor.
func (o *Observer) reached(seq events.Seq) (at time.Time, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, _ := slices.BinarySearchFunc(o.floors, seq, func(s sighting, seq events.Seq) int { return int(s.seq) - int(seq) })
	if i == len(o.floors) {
		return at, false
	}
	return o.floors[i].at, true
}

// errNone is what the metrics say before the first look.
var errNone = errors.New("the nodes' leases were not read yet")

// newest returns the newest list that came.
func (o *Observer) newest() (Sight, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last.At.IsZero() {
		return Sight{}, errNone
	}
	return o.last, nil
}
