package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// InitConfig says how the streams are made.
type InitConfig struct {
	Replicas int           // 1, 3 or 5; default 1. A majority must confirm an append
	MaxStore int64         // bytes for all streams together; default DefaultMaxStore. It is reserved on the server
	UseAge   time.Duration // how long uses wait for the auditor; default 7 days
}

func (c InitConfig) withDefaults() InitConfig {
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.MaxStore = cmp.Or(c.MaxStore, DefaultMaxStore)
	c.UseAge = cmp.Or(c.UseAge, 7*24*time.Hour)
	return c
}

// The streams that hold what cannot be rebuilt, with their shares of MaxStore.
func (c InitConfig) life(id events.LogID) jetstream.StreamConfig {
	return streams.LifeConfig(id, c.Replicas, c.MaxStore/2)
}

func (c InitConfig) read(id events.LogID) jetstream.StreamConfig {
	return streams.ReadConfig(id, c.Replicas, c.MaxStore/16)
}

func (c InitConfig) use(id events.LogID) jetstream.StreamConfig {
	return streams.UseConfig(id, c.Replicas, c.MaxStore/16*5, c.UseAge)
}

func (c InitConfig) checkpoint(id events.LogID) jetstream.StreamConfig {
	return streams.CheckpointConfig(id, c.Replicas, c.MaxStore/64)
}

// Init makes the streams and returns the streams.Identity of the log. nc must be the
// admin's. On a log that exists it changes nothing but what can be rebuilt: a
// missing KT_TIMER or KT_LEASE is made anew. It refuses to make a log where parts of an
// older one are left.
func Init(ctx context.Context, nc *nats.Conn, c InitConfig) (events.LogID, error) {
	c = c.withDefaults()
	for {
		id, err := tryInit(ctx, nc, c)
		if err == nil {
			return id, nil
		}
		if !forming(err) || wait(ctx, 20*time.Millisecond) != nil {
			return events.LogID{}, fmt.Errorf("initialise the log: %w", err)
		}
	}
}

// initPatience is how long one try of Init waits. A cluster that has just formed
// may lose a request with its first leader.
const initPatience = 5 * time.Second

// tryInit may be cut off anywhere, like a crash: the next try goes on from there.
func tryInit(ctx context.Context, nc *nats.Conn, c InitConfig) (events.LogID, error) {
	ctx, cancel := context.WithTimeout(ctx, initPatience)
	defer cancel()
	return initStreams(ctx, nc, c)
}

// forming reports whether the error is of a cluster that is not ready yet, or of
// a stream that an earlier try has made meanwhile.
func forming(err error) bool {
	api := (*jetstream.APIError)(nil)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) ||
		errors.As(err, &api) && api.Code == 503 || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse)
}

func initStreams(ctx context.Context, nc *nats.Conn, c InitConfig) (id events.LogID, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return id, err
	}
	var found [6]*jetstream.StreamInfo
	for i, name := range []string{streams.Life, streams.Use, streams.Timer, streams.Lease, streams.Read, streams.Checkpoint} {
		if found[i], err = findStream(ctx, js, name); err != nil {
			return id, err
		}
	}
	life, use, timer, lease, read, checkpoint := found[0], found[1], found[2], found[3], found[4], found[5]
	// KT_LIFE is made first: where another stream exists without it, it is lost;
	// where it is empty, an earlier Init may have ended anywhere below.
	switch {
	case life != nil:
		if id, err = streams.Identity(&life.Config); err != nil {
			return id, err
		}
		if use == nil && life.State.LastSeq > 0 {
			return id, errors.New("KT_LIFE is there but KT_USE is gone, and with it uses that the auditor may not have read: restore the server's store directory or a backup")
		}
		if read == nil && life.State.LastSeq > 0 {
			return id, errors.New("KT_LIFE is there but KT_READ is not: either it is gone, and with it the record of who read what, then restore the server's store directory or a backup; " +
				"or an older release made this log with another layout, then begin anew with an empty directory")
		}
		if checkpoint == nil && life.State.LastSeq > 0 {
			return id, errors.New("KT_LIFE is there but KT_CHECKPOINT is not: either it is gone, and with it the last signed checkpoint, which keeps a signer from another history, then restore the server's store directory or a backup; " +
				"or an older release made this log with another layout, then begin anew with an empty directory")
		}
	case use != nil || timer != nil || lease != nil || read != nil || checkpoint != nil:
		return id, errors.New("KT_LIFE is gone, or its store is damaged, but other streams of a Keytrail log are there: restore the server's store directory or a backup; a new log needs an empty server")
	default:
		id = events.LogID(ulid.MustNew(ulid.Now(), rand.Reader))
		if _, err = js.CreateStream(ctx, c.life(id)); err != nil {
			return id, fmt.Errorf("stream %s: %w", streams.Life, err)
		}
	}
	if use == nil {
		if _, err = js.CreateStream(ctx, c.use(id)); err != nil {
			return id, fmt.Errorf("stream %s: %w", streams.Use, err)
		}
	}
	if read == nil {
		if _, err = js.CreateStream(ctx, c.read(id)); err != nil {
			return id, fmt.Errorf("stream %s: %w", streams.Read, err)
		}
	}
	if checkpoint == nil {
		if _, err = js.CreateStream(ctx, c.checkpoint(id)); err != nil {
			return id, fmt.Errorf("stream %s: %w", streams.Checkpoint, err)
		}
	}
	if lease == nil { // control raises its floor before it acknowledges anything
		if _, err = js.CreateStream(ctx, streams.LeaseConfig(id, c.Replicas, c.MaxStore/32)); err != nil {
			return id, fmt.Errorf("stream %s: %w", streams.Lease, err)
		}
	}
	if timer == nil {
		config := streams.TimerConfig(id, c.Replicas, c.MaxStore/16)
		// If there was one, no sequence that a running control knows of it comes again.
		config.FirstSeq = uint64(time.Now().UnixMicro())
		if _, err = js.CreateStream(ctx, config); err != nil {
			return id, fmt.Errorf("stream %s: %w", streams.Timer, err)
		}
	}
	if _, err = js.CreateOrUpdateConsumer(ctx, streams.Timer, streams.ExpirerConfig()); err != nil {
		return id, fmt.Errorf("consumer %s: %w", streams.ExpirerConsumer, err)
	}
	return id, nil
}

// findStream returns nil for a stream that does not exist.
func findStream(ctx context.Context, js jetstream.JetStream, name string) (*jetstream.StreamInfo, error) {
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", name, err)
	}
	return s.CachedInfo(), nil
}
