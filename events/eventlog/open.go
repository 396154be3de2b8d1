package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// The streams that this package reads and writes.
const (
	lifeStream  = streams.Life
	readStream  = streams.Read
	useStream   = streams.Use
	timerStream = streams.Timer
	leaseStream = streams.Lease

	checkpointStream = streams.Checkpoint
)

// ErrNoLog says that the server holds no lifecycle log. It is made once, by
// Init, and never by accident: a log that is gone must not be replaced by an
// empty one.
var ErrNoLog = errors.New("the server holds no Keytrail log (stream KT_LIFE): if this is a new installation, initialise it; " +
	"if it is not, restore the server's store directory or a backup (a store opened with the wrong encryption key looks empty too)")

// Options say how a log is opened.
type Options struct {
	// Edge says that the connection is a verifier node's. It can read the lifecycle
	// log, append to the node's own subjects, and read the newest floor and the
	// node's own last message of uses.
	Edge bool
	// AtLeast is a position that is known to have been acknowledged, from a
	// snapshot, a marker file or ClickHouse. A log that ends before it has lost
	// events and is refused, one with another identity too. Zero = unknown.
	AtLeast events.Position
	// Replicas that the streams should have; 0 = any.
	Replicas int
	// Timeout bounds a call whose context has no nearer deadline. It should
	// outlast the election of a new leader (4 to 7 s). Default 10 s.
	Timeout time.Duration
	Logger  *slog.Logger // default none
}

// Log is Keytrail's log on JetStream: its clients over one connection. It is
// safe for concurrent use and owns nothing but memory: whoever made the connection
// closes it.
type Log struct {
	*transport
	*Lifecycle // events.Log
	*Uses      // events.UseSink, events.UseSource
	*Timers    // events.Timers
	*Leases    // events.Leases
	reads      *Reads
	checks     *Checkpoints
}

// Reads returns the client of the log of who read the record. A verifier's account
// cannot access it.
func (l *Log) Reads() *Reads { return l.reads }

// Checkpoints returns the client of the log of signed checkpoints. A verifier's
// account cannot access it.
func (l *Log) Checkpoints() *Checkpoints { return l.checks }

// Lifecycle is the client of the lifecycle stream.
type Lifecycle struct {
	*transport
	events events.Stream
	stream string // its name on the server
	tail   string // the subjects of what is published again after commit
}

// Reads is the client of the stream of who read the record: the same code over
// another stream.
type Reads struct{ *Lifecycle }

// Uses is the client of the stream of uses.
type Uses struct{ *transport }

// Timers is the client of the stream of message schedules.
type Timers struct{ *transport }

func newClients(t *transport) *Log {
	life := &Lifecycle{t, events.Lifecycle, lifeStream, streams.LifeTail}
	reads := &Reads{&Lifecycle{t, events.Reads, readStream, streams.ReadTail}}
	return &Log{t, life, &Uses{t}, &Timers{t}, newLeases(t), reads, &Checkpoints{t}}
}

var (
	_ events.Log         = (*Log)(nil)
	_ events.ReadLog     = (*Reads)(nil)
	_ events.UseSink     = (*Log)(nil)
	_ events.UseSource   = (*Log)(nil)
	_ events.Timers      = (*Log)(nil)
	_ events.Leases      = (*Log)(nil)
	_ events.Prompts     = (*Log)(nil)
	_ events.Checkpoints = (*Checkpoints)(nil)
)

// Open opens the log that the server of nc holds. It creates nothing. It
// refuses, with a sentence that says what to do, when the log is missing
// (ErrNoLog), foreign, changed in its settings, has lost a message, or ends
// before Options.AtLeast. Whether every event can be read and every history is
// whole is for Check to say. Errors: events.ErrUnavailable when the server does
// not answer; anything else no retry mends.
func Open(ctx context.Context, nc *nats.Conn, o Options) (*Log, error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	api := controlAPI
	if o.Edge {
		api = edgeAPI
	}
	l := newClients(newTransport(nc, api, o.Timeout, o.Logger))
	if err := l.check(ctx, &o); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	if err := l.reaches(ctx, o.AtLeast); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return l, nil
}

// check verifies what STREAM.INFO tells (L5).
func (l *Log) check(ctx context.Context, o *Options) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	life, err := l.info(ctx, lifeStream)
	if err != nil {
		return err
	}
	if l.id, err = streams.Identity(&life.Config); err != nil {
		return err
	}
	if l.restored, err = streams.Restored(&life.Config); err != nil {
		return err
	}
	want := streams.LifeConfig(l.id, cmpReplicas(o.Replicas, life), 1)
	if err := streams.Compare(&life.Config, &want); err != nil {
		return err
	}
	if err := contiguous(&life.State); err != nil {
		return err
	}
	if o.Edge {
		return nil
	}
	const againLease = "stop every verifier, wait until the life of their leases is over (--stale-ceiling), and run the initialisation again, it makes what is missing"
	const again = "it can be rebuilt from KT_LIFE; run the initialisation again, it makes what is missing"
	const checkpoints = "the last signed checkpoint is lost, and with it what keeps a signer from another history, or an older release made this log with another layout; restore the server's store directory or a backup, or begin anew with an empty directory"
	for _, s := range streams.All() {
		name := s.Name
		if name == lifeStream {
			continue
		}
		si, err := l.info(ctx, name)
		if errors.Is(err, ErrNoLog) {
			return fmt.Errorf("stream %s is missing: %s", name, map[string]string{
				useStream:   "uses that the auditor has not read may be lost; restore the server's store directory or a backup",
				readStream:  "the record of who read what is lost, or an older release made this log with another layout; restore the server's store directory or a backup, or begin anew with an empty directory",
				timerStream: again, leaseStream: againLease, checkpointStream: checkpoints}[name])
		}
		if err != nil {
			return err
		}
		id, err := streams.Identity(&si.Config)
		if err != nil {
			return err
		}
		if id != l.id {
			return fmt.Errorf("stream %s belongs to log %s, KT_LIFE to log %s: the server's store holds parts of two installations; restore one whole backup", name, id, l.id)
		}
		want := s.Config(l.id, cmpReplicas(o.Replicas, si), 1)
		if err := streams.Compare(&si.Config, &want); err != nil {
			return err
		}
		if name == timerStream && si.State.Consumers == 0 {
			return fmt.Errorf("stream %s has lost its consumer %s: %s", timerStream, streams.ExpirerConsumer, again)
		}
	}
	return nil
}

func cmpReplicas(want int, si *jetstream.StreamInfo) int {
	if want == 0 {
		return si.Config.Replicas
	}
	return want
}

// contiguous refuses a stream that does not hold every sequence from 1 on. The
// server itself tells such a loss nowhere.
func contiguous(s *jetstream.StreamState) error {
	const todo = "Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup"
	if s.LastSeq > 0 && s.FirstSeq != 1 {
		return &events.CorruptError{Seq: 1, Reason: fmt.Sprintf("the log begins at event %d: events 1 to %d are gone. %s", s.FirstSeq, s.FirstSeq-1, todo)}
	}
	if s.NumDeleted != 0 || s.Msgs != s.LastSeq {
		return &events.CorruptError{Reason: fmt.Sprintf("the log has %d events but its last is number %d: %d are gone. %s", s.Msgs, s.LastSeq, s.LastSeq-s.Msgs, todo)}
	}
	return nil
}

// reaches refuses a log that ends before p, or is another than p's.
func (l *Log) reaches(ctx context.Context, p events.Position) error {
	if p == (events.Position{}) {
		return nil
	}
	if p.Log != l.id {
		return fmt.Errorf("this is log %s, but log %s was used here before: connect to the right server, or remove what was kept of the other log (snapshots, marker, tables)", l.id, p.Log)
	}
	last, err := l.LastAtLeast(ctx, p.Seq)
	if err != nil {
		return err
	}
	if last < p.Seq {
		return &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the log ends at event %d, but event %d was acknowledged and has been seen: "+
			"the end of the log is lost. Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", last, p.Seq)}
	}
	return nil
}
