// Package streams defines the streams and consumers of the log on JetStream: their
// names, their settings, the identity that they carry, and how a stream is
// compared with its definition. Package server makes them; package eventlog
// refuses what differs.
package streams

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

// The names on the server.
const (
	Life  = "KT_LIFE"
	Read  = "KT_READ"
	Use   = "KT_USE"
	Timer = "KT_TIMER"
	Lease = "KT_LEASE"

	Checkpoint        = "KT_CHECKPOINT"
	CheckpointSubject = "kt.checkpoint"

	LifeSubjects = events.LifePrefix + ">"
	ReadSubjects = events.ReadPrefix + "*"
	LifeTail     = "kt.rp.life.>" // every event, after commit
	ReadTail     = "kt.rp.read.>" // every event, after commit
	UseTail      = "kt.rp.use.>"  // headers of every use message, after commit
	Heartbeats   = "kt.hb.life"

	TimerSubjects = "kt.timer.>"
	DuePrefix     = "kt.timer.due."

	LeaseFloor  = "kt.lease.floor" // the floor: a head
	LeasePrefix = "kt.lease.node." // and a node and a place: the lease of one run of a node

	AskApplied    = "kt.ask.applied" // who has applied this head? Of no stream
	AppliedPrefix = "kt.applied."    // and a node: its answer. Of no stream

	LimitPrefix  = "kt.limit."  // and a node: what it asks of the allocator of limits. Of no stream
	LeasedPrefix = "kt.leased." // and a node: the allocator's answer. Of no stream

	Copied  = "kt.copied"  // how far the auditor has copied KT_USE: a decimal sequence. Of no stream
	Limited = "kt.limited" // which nodes met which limits of a log server. Of no stream

	ExpirerConsumer = "expirer" // on KT_TIMER: what has become due

	// Stream metadata.
	MetaLog       = "keytrail_log"       // the identity of the log
	MetaRestored  = "keytrail_restored"  // the logs that it was restored from (EncodeRestored); none = it was not
	MetaRestoring = "keytrail_restoring" // a restore is not finished: this is no log yet
)

// Limit is one message of Limited: how often a node met a limit of one log server since
// that server told last.
type Limit struct {
	Node  events.NodeID `json:"node"`
	Limit string        `json:"limit"`
	Times uint64        `json:"times"`
}

// MaxMessage is the most bytes of one event's data or one batch of uses.
const MaxMessage = 1 << 20

// HeaderRoom is the most bytes of a message's headers.
const HeaderRoom = 64 << 10

// MaxPayload is the most bytes that the server takes in one message.
const MaxPayload = MaxMessage + HeaderRoom

// ackWait is as long as a Log's own calls may take by default.
const ackWait = 10 * time.Second

// dedup is how long the server knows a Nats-Msg-Id. Past it the expectation
// that every append carries still keeps an event from being stored twice.
const dedup = 2 * time.Minute

// LifeConfig is the lifecycle stream.
func LifeConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	c := logConfig(id, replicas, maxBytes)
	c.Name, c.Description = Life, "Keytrail: the lifecycle of every key. Kept for ever; never edit, purge or delete."
	c.Subjects = []string{LifeSubjects}
	c.RePublish = &jetstream.RePublish{Source: LifeSubjects, Destination: LifeTail}
	return c
}

// ReadConfig is the stream of who read the record. It is apart from KT_LIFE so that
// no amount of reading takes the room that a revocation needs.
func ReadConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	c := logConfig(id, replicas, maxBytes)
	c.Name, c.Description = Read, "Keytrail: who read and exported the record. Kept for ever; never edit, purge or delete."
	c.Subjects = []string{ReadSubjects}
	c.RePublish = &jetstream.RePublish{Source: events.ReadPrefix + ">", Destination: ReadTail}
	return c
}

// logConfig is a stream of events. There is no limit by age or count, no
// rollup, and a full stream refuses (10077) instead of forgetting. One subject
// per aggregate is what makes expectations exact on a cluster (L3).
func logConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	// No compression, here and for uses: with S2, nats-server 2.15.2 appends plain
	// records to a compressed block after crashes in a cluster, and then can
	// neither read nor write that block ("s2: unsupported input").
	return jetstream.StreamConfig{
		Storage:            jetstream.FileStorage,
		Replicas:           replicas,
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		MaxBytes:           maxBytes,
		MaxMsgs:            -1,
		MaxMsgsPerSubject:  -1,
		MaxMsgSize:         MaxPayload,
		Duplicates:         dedup,
		DenyDelete:         true,
		DenyPurge:          true,
		AllowDirect:        true,
		AllowAtomicPublish: true,
		Metadata:           map[string]string{MetaLog: id.String()},
	}
}

// UseConfig is the stream of uses: days of packed batches, the oldest forgotten
// first. ClickHouse is where uses live. The headers are published again after
// commit, which wakes a waiting reader.
func UseConfig(id events.LogID, replicas int, maxBytes int64, age time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              Use,
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
		MaxMsgSize:        MaxPayload,
		Duplicates:        dedup,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		RePublish:         &jetstream.RePublish{Source: events.UsePrefix + ">", Destination: UseTail, HeadersOnly: true},
		Metadata:          map[string]string{MetaLog: id.String()},
	}
}

// TimerConfig is the stream of message schedules. Schedules need rollup and
// purge, which KT_LIFE forbids, hence a stream of their own; all of it can be
// rebuilt from the events of KT_LIFE. The server admits no schedules to a stream that refuses what
// does not fit (10052), so a full one would forget its oldest timers: an alert tells
// long before.
func TimerConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:               Timer,
		Description:        "Keytrail: when keys become due, and up to where in KT_LIFE that is set. Rebuildable.",
		Subjects:           []string{TimerSubjects},
		Storage:            jetstream.FileStorage,
		Replicas:           replicas,
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardOld,
		MaxBytes:           maxBytes,
		MaxMsgs:            -1,
		MaxMsgsPerSubject:  1,
		MaxMsgSize:         HeaderRoom,
		Duplicates:         dedup,
		AllowMsgSchedules:  true,
		AllowMsgTTL:        true,
		AllowRollup:        true,
		AllowAtomicPublish: true,
		Metadata:           map[string]string{MetaLog: id.String()},
	}
}

// LeaseConfig is the stream of leases. It keeps the newest message of each subject
// and refuses (10077) when it is full: the floor must never be forgotten. A lease's
// record carries a TTL, since a run of a node that has crashed never comes back
// to it.
func LeaseConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              Lease,
		Description:       "Keytrail: which nodes may answer, and up to where commands were acknowledged.",
		Subjects:          []string{LeaseFloor, LeasePrefix + "*.*"},
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardNew,
		MaxBytes:          maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        MaxLease,
		Duplicates:        dedup,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		AllowMsgTTL:       true,
		Metadata:          map[string]string{MetaLog: id.String()},
	}
}

// KeepCheckpoints is the number of checkpoints that are kept: at one a second about
// fourteen hours of a log that grows without a pause.
const KeepCheckpoints = 50_000

// CheckpointConfig is the stream of signed checkpoints. The newest are kept. The last
// one, which the next signer must extend, is never forgotten: nothing but a newer one
// takes its place.
func CheckpointConfig(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              Checkpoint,
		Description:       "Keytrail: signed checkpoints of the tree over KT_LIFE. Never edit, purge or delete: the last one guards against a fork.",
		Subjects:          []string{CheckpointSubject},
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxBytes:          maxBytes,
		MaxMsgs:           KeepCheckpoints,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        events.MaxCheckpoint + 1<<10, // headers included
		Duplicates:        dedup,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		Metadata:          map[string]string{MetaLog: id.String()},
	}
}

// MaxLease is the most bytes of one message of KT_LEASE, headers included.
const MaxLease = 4 << 10

// ExpirerConfig is the one durable consumer, of KT_TIMER, which wakes the expirer.
// Init makes it, so that nobody needs the right
// to make consumers at run time. A message whose process died, or handed it back just
// before the server restarted, comes again after AckWait.
func ExpirerConfig() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{Durable: ExpirerConsumer, FilterSubject: DuePrefix + ">", AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 256}
}

// ErrRestoring says that a stream is part of a log that is not restored wholly.
var ErrRestoring = errors.New("a restore of this log was begun and is not finished: nothing may use it yet. " +
	"Wait if the restore still runs; if it was broken off, run `keytrail log restore --restart` with the same backup")

// Identity reads the log's id out of a stream's metadata. The streams of a restore
// that is not finished have none: ErrRestoring.
func Identity(c *jetstream.StreamConfig) (events.LogID, error) {
	if c.Metadata[MetaRestoring] != "" {
		return events.LogID{}, fmt.Errorf("stream %s: %w", c.Name, ErrRestoring)
	}
	id, err := events.ParseLogID(c.Metadata[MetaLog])
	if err != nil {
		return id, fmt.Errorf("stream %s carries no identity of a Keytrail log (metadata %s): it was made by something else; "+
			"point Keytrail at its own server, or move that stream away", c.Name, MetaLog)
	}
	return id, nil
}

// EncodeRestored prints the logs that a log was restored from, for MetaRestored.
func EncodeRestored(list []events.Ancestor) (string, error) {
	b, err := json.Marshal(list)
	return string(b), err
}

// Restored reads out of a stream's metadata which logs it was restored from, the
// newest first; none for a log that was not restored.
func Restored(c *jetstream.StreamConfig) (list []events.Ancestor, err error) {
	text := c.Metadata[MetaRestored]
	if text == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("stream %s: metadata %s: %w", c.Name, MetaRestored, err)
	}
	return list, nil
}

// Compare explains how a stream differs from what Init made, nil if it does
// not. Sizes, the retention of uses, placement and the description are the
// operator's to change.
func Compare(got, want *jetstream.StreamConfig) error {
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
