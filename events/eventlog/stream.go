package eventlog

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
)

// The names on the server.
const (
	lifeStream  = "KT_LIFE"
	useStream   = "KT_USE"
	timerStream = "KT_TIMER"

	lifeSubjects = events.LifePrefix + ">"
	lifeTail     = "kt.rp.life.>" // every event, after commit
	useTail      = "kt.rp.use.>"  // headers of every use message, after commit
	heartbeats   = "kt.hb.life"

	timersConsumer  = "timers"  // on KT_LIFE: one shared reader, in order
	expirerConsumer = "expirer" // on KT_TIMER: what has become due

	metaLog = "keytrail_log" // stream metadata: the identity of the log
)

// MaxMessage is the most bytes of one event's data or one batch of uses.
const MaxMessage = 1 << 20

// headerRoom is what a message may hold beside its data.
const headerRoom = 64 << 10

// ackWait is as long as a Log's own calls may take by default.
const ackWait = 10 * time.Second

// dedup is how long the server knows a Nats-Msg-Id. Past it the expectation
// that every append carries still keeps an event from being stored twice.
const dedup = 2 * time.Minute

// lifeConfig is the lifecycle stream. There is no limit by age or count, no
// rollup, and a full stream refuses (10077) instead of forgetting. One subject
// per aggregate is what makes expectations exact on a cluster (L3).
func lifeConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	// No compression, here and for uses: with S2, nats-server 2.15.2 appends plain
	// records to a compressed block after crashes in a cluster, and then can
	// neither read nor write that block ("s2: unsupported input").
	return jetstream.StreamConfig{
		Name:               lifeStream,
		Description:        "Keytrail: the lifecycle of every key. Kept for ever; never edit, purge or delete.",
		Subjects:           []string{lifeSubjects},
		Storage:            jetstream.FileStorage,
		Replicas:           replicas,
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		MaxBytes:           maxBytes,
		MaxMsgs:            -1,
		MaxMsgsPerSubject:  -1,
		MaxMsgSize:         maxPayload,
		Duplicates:         dedup,
		DenyDelete:         true,
		DenyPurge:          true,
		AllowDirect:        true,
		AllowAtomicPublish: true,
		RePublish:          &jetstream.RePublish{Source: lifeSubjects, Destination: lifeTail},
		Metadata:           map[string]string{metaLog: id.String()},
	}
}

// useConfig is the stream of uses: days of packed batches, the oldest forgotten
// first. ClickHouse is where uses live. The headers are published again after
// commit, which wakes a waiting reader.
func useConfig(id events.LogID, replicas int, maxBytes int64, age time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              useStream,
		Description:       "Keytrail: packed batches of uses, on their way to ClickHouse.",
		Subjects:          []string{events.UsePrefix + "*"},
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxAge:            age,
		MaxBytes:          maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        maxPayload,
		Duplicates:        dedup,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		RePublish:         &jetstream.RePublish{Source: events.UsePrefix + ">", Destination: useTail, HeadersOnly: true},
		Metadata:          map[string]string{metaLog: id.String()},
	}
}

// timerConfig is the stream of message schedules. Schedules need rollup and
// purge, which KT_LIFE forbids, hence a stream of their own; all of it can be
// rebuilt from KT_LIFE.
func timerConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              timerStream,
		Description:       "Keytrail: when keys become due. Rebuildable from KT_LIFE.",
		Subjects:          []string{"kt.timer.>"},
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxBytes:          maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        headerRoom,
		Duplicates:        dedup,
		AllowMsgSchedules: true,
		AllowMsgTTL:       true,
		AllowRollup:       true,
		Metadata:          map[string]string{metaLog: id.String()},
	}
}

// The durable consumers. Init makes them, so that nobody needs the right to
// make consumers at run time. One unacknowledged message at a time is what
// keeps timers in order over several processes. A message whose process died,
// or handed it back just before the server restarted, comes again after AckWait.
var (
	timersConfig = jetstream.ConsumerConfig{Durable: timersConsumer, AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 1}
	expirerConfig = jetstream.ConsumerConfig{Durable: expirerConsumer, AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 256,
		FilterSubject: dueSubjects}
)

// InitConfig says how the streams are made.
type InitConfig struct {
	Replicas int           // 1, 3 or 5; default 1. A majority must confirm an append
	MaxStore int64         // bytes for all streams together; default DefaultMaxStore. It is reserved on the server
	UseAge   time.Duration // how long uses wait for the auditor; default 7 days
}

// ErrNoLog says that the server holds no lifecycle log. It is made once, by
// Init, and never by accident: a log that is gone must not be replaced by an
// empty one.
var ErrNoLog = errors.New("the server holds no Keytrail log (stream KT_LIFE): if this is a new installation, initialise it; " +
	"if it is not, restore the server's store directory or a backup (a store opened with the wrong encryption key looks empty too)")

// Init makes the streams and returns the identity of the log. nc must be the
// admin's. On a log that exists it changes nothing but what can be rebuilt: a
// missing KT_TIMER is made anew. It refuses to make a log where parts of an
// older one are left.
func Init(ctx context.Context, nc *nats.Conn, c InitConfig) (events.LogID, error) {
	if c.Replicas == 0 {
		c.Replicas = 1
	}
	if c.MaxStore == 0 {
		c.MaxStore = DefaultMaxStore
	}
	if c.UseAge == 0 {
		c.UseAge = 7 * 24 * time.Hour
	}
	for {
		id, err := tryInit(ctx, nc, c)
		if err == nil {
			return id, nil
		}
		if !forming(err) || waitFor(ctx, pause) != nil {
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
		errors.As(err, &api) && api.Code == codeUnavailableHTTPLike || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse)
}

func initStreams(ctx context.Context, nc *nats.Conn, c InitConfig) (id events.LogID, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return id, err
	}
	var found [3]*jetstream.StreamInfo
	for i, name := range []string{lifeStream, useStream, timerStream} {
		if found[i], err = findStream(ctx, js, name); err != nil {
			return id, err
		}
	}
	life, use, timer := found[0], found[1], found[2]
	// KT_LIFE is made first: where another stream exists without it, it is lost;
	// where it is empty, an earlier Init may have ended anywhere below.
	switch {
	case life != nil:
		if id, err = identity(&life.Config); err != nil {
			return id, err
		}
		if use == nil && life.State.LastSeq > 0 {
			return id, errors.New("KT_LIFE is there but KT_USE is gone, and with it uses that the auditor may not have read: restore the server's store directory or a backup")
		}
	case use != nil || timer != nil:
		return id, errors.New("KT_LIFE is gone, or its store is damaged, but other streams of a Keytrail log are there: restore the server's store directory or a backup; a new log needs an empty server")
	default:
		id = events.LogID(ulid.MustNew(ulid.Now(), rand.Reader))
		if _, err = js.CreateStream(ctx, lifeConfig(id, c.Replicas, c.MaxStore/2)); err != nil {
			return id, fmt.Errorf("stream %s: %w", lifeStream, err)
		}
	}
	if use == nil {
		if _, err = js.CreateStream(ctx, useConfig(id, c.Replicas, c.MaxStore/8*3, c.UseAge)); err != nil {
			return id, fmt.Errorf("stream %s: %w", useStream, err)
		}
	}
	if timer == nil { // and if there was one: read KT_LIFE from its beginning again
		if err = js.DeleteConsumer(ctx, lifeStream, timersConsumer); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return id, fmt.Errorf("consumer %s: %w", timersConsumer, err)
		}
		if _, err = js.CreateStream(ctx, timerConfig(id, c.Replicas, c.MaxStore/16)); err != nil {
			return id, fmt.Errorf("stream %s: %w", timerStream, err)
		}
	}
	if _, err = js.CreateOrUpdateConsumer(ctx, timerStream, expirerConfig); err != nil {
		return id, fmt.Errorf("consumer %s: %w", expirerConsumer, err)
	}
	if _, err = js.CreateOrUpdateConsumer(ctx, lifeStream, timersConfig); err != nil {
		return id, fmt.Errorf("consumer %s: %w", timersConsumer, err)
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

// identity reads the log's id out of a stream's metadata.
func identity(c *jetstream.StreamConfig) (events.LogID, error) {
	id, err := events.ParseLogID(c.Metadata[metaLog])
	if err != nil {
		return id, fmt.Errorf("stream %s carries no identity of a Keytrail log (metadata %s): it was made by something else; "+
			"point Keytrail at its own server, or move that stream away", c.Name, metaLog)
	}
	return id, nil
}

// compare explains how a stream differs from what Init made, nil if it does
// not. Sizes, the retention of uses, placement and the description are the
// operator's to change.
func compare(got, want *jetstream.StreamConfig) error {
	var diffs []string
	is := func(name string, got, want any) {
		if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
			diffs = append(diffs, fmt.Sprintf("%s is %s, want %s", name, g, w))
		}
	}
	republish := func(r *jetstream.RePublish) string {
		if r == nil {
			return "none"
		}
		return r.Source + " to " + r.Destination + ", headers only " + strconv.FormatBool(r.HeadersOnly)
	}
	is("subjects", got.Subjects, want.Subjects)
	is("num_replicas", got.Replicas, want.Replicas)
	is("storage", got.Storage, want.Storage)
	is("retention", got.Retention, want.Retention)
	is("discard", got.Discard, want.Discard)
	is("max_msgs", max(got.MaxMsgs, 0), max(want.MaxMsgs, 0))
	is("max_msgs_per_subject", max(got.MaxMsgsPerSubject, 0), max(want.MaxMsgsPerSubject, 0))
	is("max_msg_size", got.MaxMsgSize, want.MaxMsgSize)
	is("max_age set", got.MaxAge > 0, want.MaxAge > 0)
	is("max_bytes set", got.MaxBytes > 0, true)
	is("duplicate_window", got.Duplicates, want.Duplicates)
	is("no_ack", got.NoAck, want.NoAck)
	is("sealed", got.Sealed, want.Sealed)
	is("deny_delete", got.DenyDelete, want.DenyDelete)
	is("deny_purge", got.DenyPurge, want.DenyPurge)
	is("allow_rollup_hdrs", got.AllowRollup, want.AllowRollup)
	is("allow_direct", got.AllowDirect, want.AllowDirect)
	is("allow_atomic", got.AllowAtomicPublish, want.AllowAtomicPublish)
	is("allow_msg_ttl", got.AllowMsgTTL, want.AllowMsgTTL)
	is("allow_msg_schedules", got.AllowMsgSchedules, want.AllowMsgSchedules)
	is("persist_mode", got.PersistMode, want.PersistMode)
	is("republish", republish(got.RePublish), republish(want.RePublish))
	is("mirror", got.Mirror != nil, want.Mirror != nil)
	is("sources", len(got.Sources), len(want.Sources))
	is("subject_transform", got.SubjectTransform != nil, want.SubjectTransform != nil)
	if len(diffs) == 0 {
		return nil
	}
	return fmt.Errorf("stream %s is not as Keytrail made it: %s. Someone has changed it: set it back as the server's admin, "+
		"and check the whole log before it is trusted again", got.Name, strings.Join(diffs, "; "))
}

// CheckServers asks the servers themselves, as user sys, whether each
// acknowledges only what is fsynced (L1); want is how many there should be.
func CheckServers(ctx context.Context, sys *nats.Conn, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	inbox := sys.NewInbox()
	sub, err := sys.SubscribeSync(inbox)
	if err != nil {
		return fmt.Errorf("ask the servers: %w", err)
	}
	defer sub.Unsubscribe()
	if err := sys.PublishRequest("$SYS.REQ.SERVER.PING.JSZ", inbox, nil); err != nil {
		return fmt.Errorf("ask the servers: %w", err)
	}
	var lax, seen []string
	for len(seen) < want {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d servers say how they sync (%s); the others cannot be reached", len(seen), want, strings.Join(seen, ", "))
		}
		var a struct {
			Server struct{ Name string } `json:"server"`
			Data   struct {
				Config struct {
					SyncAlways bool `json:"sync_always"`
				} `json:"config"`
			} `json:"data"`
		}
		if err := json.Unmarshal(m.Data, &a); err != nil {
			return fmt.Errorf("ask the servers: %w", err)
		}
		seen = append(seen, a.Server.Name)
		if !a.Data.Config.SyncAlways {
			lax = append(lax, a.Server.Name)
		}
	}
	if len(lax) > 0 {
		slices.Sort(lax)
		return fmt.Errorf("server %s acknowledges before it has fsynced, and a power loss would take acknowledged events: "+
			"set jetstream { sync_interval: always } in its configuration and restart it", strings.Join(lax, ", "))
	}
	return nil
}
