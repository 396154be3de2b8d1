package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/projections"
)

// Log is what a snapshot is held against. eventlog's log implements it.
type Log interface {
	ID() events.LogID
	// Last and LastAtLeast are those of events.LastAtLeastLog.
	Last(ctx context.Context) (events.Seq, error)
	LastAtLeast(ctx context.Context, seq events.Seq) (events.Seq, error)
	// Floor returns the newest floor that a read shows, or an older one.
	Floor(ctx context.Context) (events.Floor, error)
	// Leaves hands the subject and the SHA-256 of the document of each event from
	// first to last to take, in order, at most rate a second.
	Leaves(ctx context.Context, first, last events.Seq, rate int, take func(seq events.Seq, subject string, document events.Hash) error) error
	// Replay hands the events from first to last to apply, in order, at most rate a
	// second.
	Replay(ctx context.Context, first, last events.Seq, rate int, apply func([]events.Recorded) error) error
}

// View is a view that can be fetched: *projections.Keys and *projections.Directory.
type View interface {
	projections.View
	events.Follower
	Wait(ctx context.Context, s events.Seq) error
	Past() (tree.Range, events.Hash)
	Refuse(error)
}

// kinds make an empty view of each name.
var kinds = map[string]func() View{
	(*projections.Keys)(nil).Name():      func() View { return projections.NewKeys() },
	(*projections.Directory)(nil).Name(): func() View { return projections.NewDirectory() },
}

// Config says where a Store keeps snapshots, and from which nodes it fetches them.
type Config struct {
	Dir     string // there, and trusted (files.MakeDataDir)
	Log     Log
	Sources []Source // asked in this order; none = nothing is fetched
	// Rate is the most events a second that a proof folds. Default 20,000: ten million
	// events in 8 minutes.
	Rate   int
	Logger *slog.Logger
}

// Source is a node that may have a snapshot.
type Source struct {
	URL string // without a password: it is logged and stored
	// Get asks the node for a path. The error of an answer other than 2xx is a
	// *api.Problem.
	Get func(ctx context.Context, path string) (io.ReadCloser, error)
}

// Store fetches snapshots into a directory, and proves those that were fetched. Fetch and
// Watch come before Run; the rest is safe for concurrent use.
type Store struct {
	cfg     Config
	refused []fetched
	views   map[string]View // that run

	mu       sync.Mutex
	unproven []fetched // guarded by mu once Run has begun
	done     chan struct{}
	position atomic.Uint64
}

// Open reads what the directory says of fetched snapshots. If one was refused (S2) it
// removes the snapshots that follow from it. It comes before they are restored.
func Open(cfg Config) (*Store, error) {
	if cfg.Rate <= 0 {
		cfg.Rate = 20_000
	}
	s := &Store{cfg: cfg, views: map[string]View{}, done: make(chan struct{})}
	var err error
	if s.unproven, err = read(cfg.Dir, unprovenFile, cfg.Log.ID()); err == nil {
		s.refused, err = read(cfg.Dir, refusedFile, cfg.Log.ID())
	}
	if err != nil {
		return nil, err
	}
	for _, f := range slices.Clone(s.unproven) {
		if !slices.Contains(s.refused, f) {
			continue
		}
		cfg.Logger.Warn("the snapshots of a view are removed: they follow from one that did not say what the log says", "view", f.view, "seq", uint64(f.seq), "from", f.from)
		if err := s.remove(f); err != nil {
			return nil, fmt.Errorf("remove the snapshots that follow from a wrong one: %w", err)
		}
	}
	return s, nil
}

// remove removes the snapshots of the view, and then what says that they are unproven. If
// one of them stays, so does that: else it would count as this node's own.
func (s *Store) remove(f fetched) error {
	paths, err := filepath.Glob(filepath.Join(s.cfg.Dir, f.view+"-*.snap"))
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return err
	}
	return s.forget(f.view)
}

// drop removes what was fetched of the view and is not used: Receive may have failed when
// the file had its name already, or the file cannot be read now.
func (s *Store) drop(view string) error {
	i := slices.IndexFunc(s.unproven, func(f fetched) bool { return f.view == view })
	if i < 0 {
		return nil
	}
	if err := s.remove(s.unproven[i]); err != nil {
		return fmt.Errorf("remove a fetched snapshot that is not used: %w", err)
	}
	return nil
}

// forget says that no snapshot of the view is unproven.
func (s *Store) forget(view string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unproven = slices.DeleteFunc(slices.Clone(s.unproven), func(f fetched) bool { return f.view == view })
	return s.keep()
}

// keep makes the list of the unproven durable. s.mu is held, or Run has not begun.
func (s *Store) keep() error {
	if len(s.unproven) > 0 {
		return write(s.cfg.Dir, unprovenFile, s.cfg.Log.ID(), s.unproven)
	}
	err := os.Remove(filepath.Join(s.cfg.Dir, unprovenFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Watch names a view of this process, before it is followed: Run refuses it if it follows
// from a snapshot that is wrong. One that begins with the first event follows from none.
func (s *Store) Watch(v View) error {
	s.views[v.Name()] = v
	if v.Resume() == 0 {
		return s.drop(v.Name())
	}
	return nil
}

// Proven returns nil if no view of this process follows from an unproven snapshot, else
// a sentence.
func (s *Store) Proven() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unproven) == 0 {
		return nil
	}
	return fmt.Errorf("the %s of this node came from %s, and are still being compared with the log", s.unproven[0].view, s.unproven[0].from)
}

// Wait returns when Proven returns nil, or with ctx's error.
func (s *Store) Wait(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Collectors returns the store's metrics.
func (s *Store) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "keytrail_snapshot_unproven", Help: "Views that follow from a snapshot of another node whose rows have not been compared with the log yet."},
			func() float64 {
				s.mu.Lock()
				defer s.mu.Unlock()
				return float64(len(s.unproven))
			}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "keytrail_snapshot_proof_position", Help: "Sequence of the last event that was folded again to compare a fetched snapshot with the log; 0 before, and where nothing was fetched."},
			func() float64 { return float64(s.position.Load()) }),
	}
}

// progress is how often a proof says how far it is.
const progress = 30 * time.Second
