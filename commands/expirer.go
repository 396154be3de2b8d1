package commands

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// ExpirerConfig is what an Expirer works with.
type ExpirerConfig struct {
	Log    events.Log             // required
	Leases events.Leases          // required
	Timers events.Timers          // required
	Dir    *projections.Directory // required; somebody else lets it follow Log
	Now    func() time.Time       // default time.Now
	Node   events.NodeID          // names this process in the events' source
	Logger *slog.Logger           // default slog.Default
}

// Expirer records that keys have expired, each exactly once, however many
// expirers run: the key's history admits one key.expired. Nothing waits for it;
// verifiers refuse by the clock.
type Expirer struct {
	cfg     ExpirerConfig
	source  string
	most    int // settings of one Set; fewer in tests
	expired prometheus.Counter
}

// NewExpirer returns an Expirer.
func NewExpirer(cfg ExpirerConfig) *Expirer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Expirer{
		cfg:    cfg,
		most:   events.MaxTimers,
		source: "/keytrail/control/" + string(cfg.Node),
		expired: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keytrail_expirer_recorded_total",
			Help: "key.expired events that this process recorded. Standing still while keys expire means that timers do not fire; enforcement does not depend on it.",
		}),
	}
}

// Collectors returns the expirer's metrics; the caller registers them.
func (x *Expirer) Collectors() []prometheus.Collector { return []prometheus.Collector{x.expired} }

// Run keeps the timers in step with the log and records what falls due, until
// ctx ends (it then returns ctx's error) or the timers fail.
func (x *Expirer) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { stop(x.feed(ctx)) })
	wg.Go(func() { stop(x.cfg.Timers.Due(ctx, x.due)) })
	wg.Wait()
	return context.Cause(ctx) // ctx's own, or that of whichever failed first
}

func (x *Expirer) load(ctx context.Context, ref events.KeyRef) (events.Key, error) {
	history, err := x.cfg.Log.Load(ctx, ref.Aggregate())
	if err != nil {
		return events.Key{}, err
	}
	return events.FoldKey(history)
}

// due records the expiry of a key whose timer fired. An error hands it in again.
func (x *Expirer) due(ctx context.Context, ref events.KeyRef) error {
	for range maxTries {
		k, err := x.load(ctx, ref)
		if err == nil {
			err = x.cfg.Dir.Wait(ctx, k.Chain.Seq) // it stays at 0 when the log is of another history than this node has followed
		}
		if err != nil {
			return x.failed(ctx, "load", ref, err)
		}
		now := events.At(x.cfg.Now())
		data := DecideExpire(&k, now)
		if data == nil {
			if k.May(&events.KeyExpired{}) == nil {
				// Its time has moved, or this clock is behind the timers'. In the second
				// case the timer fires again at once: the pause keeps that from spinning. In
				// the first, the server that fires a timer removes it, and may have removed
				// the one that was set meanwhile.
				pause(ctx, min(time.Second, time.Duration(k.ExpiresAt-now)*time.Millisecond))
				err = x.rearm(ctx, ref)
			}
			if err != nil {
				return x.failed(ctx, "set a timer", ref, err)
			}
			return nil
		}
		b := &batch{now: now, readers: x.cfg.Log.Readers(), seal: sealSystem("expirer", x.source, now)}
		if _, err := b.key(ref.Aggregate(), &k, data); err != nil {
			return x.failed(ctx, "decide", ref, err)
		}
		// crash here: the timer is handed in again and the history says whether the
		// expiry is on it.
		seq, err := store(ctx, x.cfg.Log, b.writes)
		if err == nil {
			err = acknowledge(ctx, x.cfg.Log, x.cfg.Leases, x.cfg.Dir, seq)
		}
		if err == nil {
			x.expired.Inc()
			x.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "key expired", slog.String("key_id", ref.Key.String()), slog.String("tenant", string(ref.Tenant)), slog.Uint64("seq", uint64(seq)))
			return nil
		}
		if !errors.Is(err, events.ErrConflict) {
			return x.failed(ctx, "record the expiry", ref, err)
		}
	}
	return x.failed(ctx, "record the expiry", ref, events.ErrConflict)
}

// pause returns after d, or when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (x *Expirer) failed(ctx context.Context, what string, ref events.KeyRef, err error) error {
	err = fmt.Errorf("%s of %s: %w", what, ref.Key, err)
	x.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "expirer", slog.String("key_id", ref.Key.String()), slog.Any("err", err))
	return err
}
