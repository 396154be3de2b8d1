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

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

const (
	heartbeatEvery   = 250 * time.Millisecond
	heartbeatMissing = 400 * time.Millisecond // after so long without a heartbeat a follower asks for itself
)

// heartbeat says: when the clock read At, the log's last event was Last.
type heartbeat struct {
	Log  events.LogID `json:"log"`
	Last events.Seq   `json:"last"`
	At   int64        `json:"ts"` // milliseconds since the Unix epoch
}

// leaderHeartbeat asks the stream's leader for a heartbeat. The clock is read before
// the leader is asked, so that the heartbeat never claims more than is true;
// the time of the last event itself is true too, and may be the later one.
func (l *Lifecycle) leaderHeartbeat(ctx context.Context) (heartbeat, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := time.Now().UnixMilli()
	si, err := l.info(ctx, l.stream)
	if err != nil {
		return heartbeat{}, err
	}
	if !leads(si.Cluster) {
		return heartbeat{}, fmt.Errorf("%w: %w", events.ErrUnavailable, errMinority)
	}
	id, err := streams.Identity(&si.Config)
	if err != nil {
		return heartbeat{}, err
	}
	if si.State.LastSeq > 0 {
		at = max(at, si.State.LastTime.UnixMilli())
	}
	return heartbeat{Log: id, Last: events.Seq(si.State.LastSeq), At: at}, nil
}

// Heartbeat publishes a heartbeat every 250 ms until ctx ends, and returns its
// error. Control runs it; any number of publishers is fine. Without one the
// followers ask the leader themselves, each for itself.
func (l *Lifecycle) Heartbeat(ctx context.Context) error {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	down := false
	for {
		err := l.publishHeartbeat(ctx)
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

func (l *Lifecycle) publishHeartbeat(ctx context.Context) error {
	b, err := l.leaderHeartbeat(ctx)
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
	return l.nc.Publish(streams.Heartbeats, data)
}

func (t *transport) foreign(id events.LogID) error {
	return &events.CorruptError{Reason: fmt.Sprintf("the server now holds log %s where log %s was: someone has replaced it. "+
		"Connect to the right server, or restore the log from a backup", id, t.id)}
}

// Follow implements events.Log. Events come over a core subscription to what
// the stream publishes again after commit, applied strictly by sequence;
// whatever is missing, at the start as after a lost connection, is read
// directly (L6). A consumer would stand still for up to 11 s at a failover.
func (l *Lifecycle) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	ch := make(chan *nats.Msg, 1024) // what does not fit is dropped, and repaired
	subjects := []string{l.tail}
	if l.events == events.Lifecycle {
		subjects = append(subjects, streams.Heartbeats) // nobody waits for the read log: its follower asks
	}
	for _, subject := range subjects {
		sub, err := l.nc.ChanSubscribe(subject, ch)
		if err != nil {
			return fmt.Errorf("follow the log: %w: %w", events.ErrUnavailable, err)
		}
		defer sub.Unsubscribe()
	}
	ctx, cancel := context.WithCancel(ctx)
	_, untimed := f.(events.Untimed)
	fw := &follower{l: l, f: f, bare: untimed && l.bare(), next: after + 1, live: ch,
		heartbeats: make(chan heartbeat, 1), began: time.Now(), reconnects: l.nc.Stats().Reconnects}
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
	l          *Lifecycle
	live       chan *nats.Msg
	heartbeats chan heartbeat // heartbeats that poll asked for
	began      time.Time      // with a steady clock: nobody can set it back
	heard      atomic.Int64   // when the last heartbeat came: nanoseconds since began, 0 = never

	// Owned by run.
	f     events.Follower
	bare  bool       // bulk reads go without headers
	next  events.Seq // the next event to apply
	batch []events.Recorded
	fresh heartbeat // the last one passed on

	hash       events.Hash // of the last event applied, zero before the first
	reconnects uint64      // connections so far for which the log was recognised
}

// poll asks for a heartbeat whenever none has come for a while, first of all at once.
func (fw *follower) poll(ctx context.Context) {
	for r := (retry{}); ; {
		if rest := fw.untilPoll(); rest > 0 {
			if waitFor(ctx, rest) != nil {
				return
			}
			continue
		}
		if b, err := fw.l.leaderHeartbeat(ctx); err == nil {
			fw.hear()
			r.again()
			select {
			case fw.heartbeats <- b:
			case <-ctx.Done():
				return
			}
		} else if r.wait(ctx) != nil {
			return
		}
	}
}

// hear notes that a heartbeat came.
func (fw *follower) hear() { fw.heard.Store(int64(time.Since(fw.began))) }

// untilPoll returns how long no heartbeat need be asked for.
func (fw *follower) untilPoll() time.Duration {
	heard := time.Duration(fw.heard.Load())
	if heard == 0 {
		return 0
	}
	return heard + heartbeatMissing - time.Since(fw.began)
}

// run returns ctx's error, the follower's, or a *CorruptError.
func (fw *follower) run(ctx context.Context) error {
	for {
		var b heartbeat
		var m *nats.Msg
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b = <-fw.heartbeats:
		case m = <-fw.live:
		}
		err := fw.recognise(ctx)
		switch {
		case err != nil:
		case m == nil:
			err = fw.applyHeartbeat(ctx, b)
		default:
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
		if !fw.recognised() {
			return fw.flush() // m is repaired
		}
		if m.Subject == streams.Heartbeats {
			if err := fw.flush(); err != nil {
				return err
			}
			return fw.readHeartbeat(ctx, m)
		}
		s, err := fromReply(m, fw.l.stream)
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
	fw.hash = batch[len(batch)-1].Hash
	return nil
}

// recognise makes sure, after a lost connection and before anything that came after
// it is used, that the log still ends or goes on with the event applied last: what
// answers now may be a copy of the log with another history.
func (fw *follower) recognise(ctx context.Context) error {
	n := fw.l.nc.Stats().Reconnects
	if n == fw.reconnects {
		return nil
	}
	if err := fw.repair(ctx, fw.next-1); err != nil {
		return err
	}
	fw.reconnects = n
	return nil
}

// recognised reports whether the connection is still that of the last recognise. A
// reconnect is counted before the new connection delivers anything, so what was
// received before the question came over the old one.
func (fw *follower) recognised() bool { return fw.l.nc.Stats().Reconnects == fw.reconnects }

// readHeartbeat takes nothing for a heartbeat but what Heartbeat writes: within its
// account a verifier can aim other answers of the server at this subject. What
// it drops, poll makes up for.
func (fw *follower) readHeartbeat(ctx context.Context, m *nats.Msg) error {
	var b heartbeat
	d := json.NewDecoder(bytes.NewReader(m.Data))
	d.DisallowUnknownFields()
	if d.Decode(&b) != nil || d.InputOffset() != int64(len(m.Data)) || b.Log.IsZero() || len(m.Header) > 0 {
		return nil
	}
	fw.hear()
	fw.l.trust()
	return fw.applyHeartbeat(ctx, b)
}

// applyHeartbeat brings the follower up to the heartbeat and passes it on.
func (fw *follower) applyHeartbeat(ctx context.Context, b heartbeat) error {
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
	// Another publisher's clock may be behind, or this one's was set back. The
	// earlier claim still holds, and the log is alive.
	b.At = max(b.At, fw.fresh.At)
	fw.fresh = b
	fw.f.Fresh(events.Time(b.At), b.Last)
	return nil
}

// repair reads everything up to last, trying until ctx ends. It begins with the
// event applied last, which must be the same still.
func (fw *follower) repair(ctx context.Context, last events.Seq) error {
	from := fw.next
	if !fw.hash.IsZero() {
		from--
	}
	for r := (retry{}); from <= last; {
		before := from
		failed := error(nil)
		_, err := fw.l.replay(ctx, from, last, fw.bare, func(batch []events.Recorded) error {
			if batch[0].Seq < fw.next {
				if batch[0].Hash != fw.hash {
					failed = fw.replaced(&batch[0])
					return failed
				}
				batch = batch[1:]
			}
			if len(batch) > 0 {
				failed = fw.apply(batch)
			}
			from = fw.next
			return failed
		})
		if failed != nil {
			return failed
		}
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return err
		}
		if err != nil && from == before {
			if err := fw.l.missing(ctx, from); err != nil {
				return err
			}
			if r.wait(ctx) != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

func (fw *follower) replaced(r *events.Recorded) error {
	return &events.CorruptError{Seq: r.Seq, Reason: fmt.Sprintf("the log is not the log that was followed here: event %d has hash %.16s now, and had %.16s. "+
		"The log was restored from an older copy and written on, or altered. Nothing is answered from it. Find out which history is right: "+
		"keys that were revoked after the copy was made are alive in it", r.Seq, r.Hash, fw.hash)}
}

// shrunk asks the leader, after a heartbeat that is behind what was applied,
// whether the log has lost its end. Mostly the heartbeat is only older.
func (fw *follower) shrunk(ctx context.Context) error {
	last, err := fw.l.end(ctx, fw.l.stream, fw.next-1)
	if err != nil || last >= fw.next-1 {
		return nil
	}
	return &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the log ends at event %d, but event %d was followed here: the end of the log is lost. "+
		"Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", last, fw.next-1)}
}
