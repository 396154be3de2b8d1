package eventlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

const (
	beatEvery   = 250 * time.Millisecond
	beatMissing = 400 * time.Millisecond // after so long without a heartbeat a follower asks for itself
	// leaseHolds is how recently a majority must have answered a leader for its
	// word to count. It is below the least election timeout (4 s), so that no
	// other leader can have been elected meanwhile.
	leaseHolds = 3 * time.Second
)

// beat is a heartbeat: when the clock read At, the log's last event was Last.
type beat struct {
	Log  events.LogID `json:"log"`
	Last events.Seq   `json:"last"`
	At   int64        `json:"ts"` // milliseconds since the Unix epoch
}

// pulse takes a heartbeat from the stream's leader. The clock is read before
// the leader is asked, so that the heartbeat never claims more than is true;
// the time of the last event itself is true too, and may be the later one.
func (l *Log) pulse(ctx context.Context) (beat, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := time.Now().UnixMilli()
	si, err := l.info(ctx, lifeStream)
	if err != nil {
		return beat{}, err
	}
	if !leads(si.Cluster) {
		return beat{}, fmt.Errorf("%w: its leader has lost touch with the majority", events.ErrUnavailable)
	}
	id, err := identity(&si.Config)
	if err != nil {
		return beat{}, err
	}
	if si.State.LastSeq > 0 {
		at = max(at, si.State.LastTime.UnixMilli())
	}
	return beat{Log: id, Last: events.Seq(si.State.LastSeq), At: at}, nil
}

// leads reports whether a majority has answered the leader recently. A leader
// cut off from the others goes on answering reads for up to 10 s.
func leads(c *jetstream.ClusterInfo) bool {
	if c == nil || len(c.Replicas) == 0 {
		return true
	}
	alive := 1
	for _, r := range c.Replicas {
		if !r.Offline && r.Active < leaseHolds {
			alive++
		}
	}
	return alive > (len(c.Replicas)+1)/2
}

// Heartbeat publishes a heartbeat every 250 ms until ctx ends, and returns its
// error. Control runs it; any number of publishers is fine. Without one the
// followers ask the leader themselves, each for itself.
func (l *Log) Heartbeat(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	down := false
	for {
		err := l.heartbeat(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !down {
			l.log.LogAttrs(ctx, slog.LevelWarn, "no heartbeat: verifiers grow stale", slog.Any("err", err))
		}
		down = err != nil
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (l *Log) heartbeat(ctx context.Context) error {
	b, err := l.pulse(ctx)
	if err != nil {
		return err
	}
	if b.Log != l.id {
		return l.foreign(b.Log)
	}
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return l.nc.Publish(heartbeats, data)
}

func (l *Log) foreign(id events.LogID) error {
	return &events.CorruptError{Reason: fmt.Sprintf("the server now holds log %s where log %s was: someone has replaced it. "+
		"Connect to the right server, or restore the log from a backup", id, l.id)}
}

// Follow implements events.Log. Events come over a core subscription to what
// the stream publishes again after commit, applied strictly by sequence;
// whatever is missing, at the start as after a lost connection, is read
// directly (L6). A consumer would stand still for up to 11 s at a failover.
func (l *Log) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	ch := make(chan *nats.Msg, 1024) // what does not fit is dropped, and repaired
	for _, subject := range []string{lifeTail, heartbeats} {
		sub, err := l.nc.ChanSubscribe(subject, ch)
		if err != nil {
			return fmt.Errorf("follow the log: %w: %w", events.ErrUnavailable, err)
		}
		defer sub.Unsubscribe()
	}
	ctx, cancel := context.WithCancel(ctx)
	fw := &follower{l: l, f: f, next: after + 1, live: ch, beats: make(chan beat, 1)}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { fw.poll(ctx) })
	err := fw.run(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// follower is one Follow.
type follower struct {
	l     *Log
	live  chan *nats.Msg
	beats chan beat    // heartbeats that poll asked for
	heard atomic.Int64 // when the last heartbeat came, UnixNano

	// Owned by run.
	f     events.Follower
	next  events.Seq // the next event to apply
	batch []events.Recorded
	fresh beat // the last one passed on
}

// poll asks for a heartbeat whenever none has come for a while, first of all at once.
func (fw *follower) poll(ctx context.Context) {
	for {
		if since := time.Since(time.Unix(0, fw.heard.Load())); since < beatMissing {
			if waitFor(ctx, beatMissing-since) != nil {
				return
			}
			continue
		}
		if b, err := fw.l.pulse(ctx); err == nil {
			fw.heard.Store(time.Now().UnixNano())
			select {
			case fw.beats <- b:
			case <-ctx.Done():
				return
			}
		} else if waitFor(ctx, pause) != nil {
			return
		}
	}
}

// run returns ctx's error, the follower's, or a *CorruptError.
func (fw *follower) run(ctx context.Context) error {
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-fw.beats:
			err = fw.beat(ctx, b)
		case m := <-fw.live:
			err = fw.take(ctx, m)
		}
		if err != nil {
			return err
		}
	}
}

// take handles one message and those that already wait behind it.
func (fw *follower) take(ctx context.Context, m *nats.Msg) error {
	fw.batch = fw.batch[:0]
	for {
		if m.Subject == heartbeats {
			if err := fw.flush(); err != nil {
				return err
			}
			return fw.heartbeat(ctx, m)
		}
		s, err := fromReply(m, lifeStream)
		due := fw.next + events.Seq(len(fw.batch))
		switch {
		case err != nil: // not from the stream: what is missing is repaired
		case s.seq > due: // something was dropped
			if err := fw.flush(); err != nil {
				return err
			}
			return fw.repair(ctx, s.seq)
		case s.seq == due:
			r, err := s.decode()
			if err != nil {
				return errors.Join(fw.flush(), err)
			}
			fw.batch = append(fw.batch, r)
		}
		if len(fw.batch) == chunkEvents {
			return fw.flush()
		}
		select {
		case m = <-fw.live:
		default:
			return fw.flush()
		}
	}
}

func (fw *follower) flush() error {
	if len(fw.batch) == 0 {
		return nil
	}
	batch := fw.batch
	fw.batch = fw.batch[:0]
	return fw.apply(batch)
}

func (fw *follower) apply(batch []events.Recorded) error {
	if err := fw.f.Apply(batch); err != nil {
		return err
	}
	fw.next += events.Seq(len(batch))
	return nil
}

// heartbeat takes nothing for a heartbeat but what Heartbeat writes: within its
// account a verifier can aim other answers of the server at this subject. What
// it drops, poll makes up for.
func (fw *follower) heartbeat(ctx context.Context, m *nats.Msg) error {
	var b beat
	d := json.NewDecoder(bytes.NewReader(m.Data))
	d.DisallowUnknownFields()
	if d.Decode(&b) != nil || d.InputOffset() != int64(len(m.Data)) || b.Log.IsZero() || len(m.Header) > 0 {
		return nil
	}
	fw.heard.Store(time.Now().UnixNano())
	return fw.beat(ctx, b)
}

// beat brings the follower up to the heartbeat and passes it on.
func (fw *follower) beat(ctx context.Context, b beat) error {
	if b.Log != fw.l.id {
		return fw.l.foreign(b.Log)
	}
	if b.Last >= fw.next {
		if err := fw.repair(ctx, b.Last); err != nil {
			return err
		}
	}
	if b.Last+1 < fw.next {
		if err := fw.shrunk(ctx); err != nil {
			return err
		}
	}
	if b.Last < fw.fresh.Last {
		return nil // older than one already passed on: several publish
	}
	// Another publisher's clock may be behind, or this one's was set back. What
	// was claimed before stays true, and the log has been heard of.
	b.At = max(b.At, fw.fresh.At)
	fw.fresh = b
	fw.f.Fresh(events.Time(b.At), b.Last)
	return nil
}

// repair reads everything up to last, trying until ctx ends.
func (fw *follower) repair(ctx context.Context, last events.Seq) error {
	for fw.next <= last {
		before := fw.next
		failed := error(nil)
		_, err := fw.l.replay(ctx, fw.next, last, func(batch []events.Recorded) error {
			failed = fw.apply(batch)
			return failed
		})
		if failed != nil {
			return failed
		}
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return err
		}
		if err != nil && fw.next == before {
			if err := fw.l.missing(ctx, fw.next); err != nil {
				return err
			}
			if waitFor(ctx, pause) != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

// shrunk asks the leader, after a heartbeat that is behind what was applied,
// whether the log has lost its end. Mostly the heartbeat is only older.
func (fw *follower) shrunk(ctx context.Context) error {
	b, err := fw.l.pulse(ctx)
	if err != nil || b.Last+1 >= fw.next {
		return nil
	}
	return &events.CorruptError{Seq: b.Last + 1, Reason: fmt.Sprintf("the log ends at event %d, but event %d was followed here: the end of the log is lost. "+
		"Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", b.Last, fw.next-1)}
}
