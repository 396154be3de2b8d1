package streams

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

// Stream is one stream of a log.
type Stream struct {
	Name string
	// Keeps says that the stream must not lose its oldest messages: it is to be grown
	// before it is full.
	Keeps bool

	config func(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig
}

// Config returns the definition of the stream in the log id, with a limit of
// maxBytes. Compare ignores the limit, and for how long KT_USE keeps uses.
func (s Stream) Config(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
	return s.config(id, replicas, maxBytes)
}

// All returns every stream of a log, KT_LIFE first.
func All() []Stream {
	use := func(id events.LogID, replicas int, maxBytes int64) jetstream.StreamConfig {
		return UseConfig(id, replicas, maxBytes, 7*24*time.Hour)
	}
	return []Stream{
		{Life, true, LifeConfig},
		{Read, true, ReadConfig},
		{Use, false, use},
		{Timer, true, TimerConfig},
		{Lease, true, LeaseConfig},
		{Checkpoint, false, CheckpointConfig},
	}
}

// Find returns the stream of the name; ok is false when a log has none.
func Find(name string) (s Stream, ok bool) {
	for _, s := range All() {
		if s.Name == name {
			return s, true
		}
	}
	return Stream{}, false
}

// Names returns the names of all streams, in the order of All.
func Names() []string {
	var out []string
	for _, s := range All() {
		out = append(out, s.Name)
	}
	return out
}
