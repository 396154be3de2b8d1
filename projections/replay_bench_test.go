package projections

import (
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// BenchmarkDecodeAndFold is what a replay costs on one core, reading left out: each
// part, and all of them in batches as Follow hands them on. The time that is computed
// is comparable on a busy machine.
func BenchmarkDecodeAndFold(b *testing.B) {
	const n, batch = 20_000, 256
	w := newWorld(b)
	w.define("ks", definition())
	for _, r := range bigLog(0, n) {
		w.add(r.Aggregate, r.Data)
	}
	var messages []events.Message
	for i := range w.log {
		m, err := events.Encode(&w.log[i].Event)
		if err != nil {
			b.Fatal(err)
		}
		messages = append(messages, m)
		w.log[i].Hash = m.Hash()
	}
	run := func(name string, f func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				f(b)
			}
			events := float64(len(messages) * b.N)
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/events, "cpu-ns/event")
			b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
		})
	}
	run("decode", func(b *testing.B) {
		for i := range messages {
			if _, err := events.Decode(&messages[i]); err != nil {
				b.Fatal(err)
			}
		}
	})
	run("hash", func(*testing.B) {
		for i := range messages {
			messages[i].Hash()
		}
	})
	run("tree", func(*testing.B) {
		var r tree.Range
		for i := range w.log {
			r.Append(tree.LeafHash(w.log[i].Aggregate.Subject(), w.log[i].Hash))
		}
	})
	all := func(v events.Follower) func(b *testing.B) {
		return func(b *testing.B) {
			for i := 0; i < len(messages); i += batch {
				var out []events.Recorded
				for j := i; j < min(i+batch, len(messages)); j++ {
					e, err := events.Decode(&messages[j])
					if err != nil {
						b.Fatal(err)
					}
					out = append(out, messages[j].Record(e, events.Seq(j+1), 0))
				}
				if err := v.Apply(out); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	run("all/keys", func(b *testing.B) { all(NewKeys())(b) })
	run("all/directory", func(b *testing.B) { all(NewDirectory())(b) })
}
