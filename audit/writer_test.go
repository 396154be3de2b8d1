package audit

import (
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestWriterCopies(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	c := &clock{start}
	log.Now = c.now
	startWriter(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: 10 * time.Millisecond})

	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s1"), &events.KeyDisabled{}, &events.KeyEnabled{})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{
		use(c.at, "scribe", "acme", ref.Key, events.ReasonOK, "203.0.113.7"),
		use(c.at+1, "scribe", "acme", ref.Key, events.ReasonKeyDisabled, "2001:db8::1"),
		use(c.at+2, "", "", events.KeyID{}, events.ReasonKeyUnknown, ""),
	}})
	c.at = c.at.Add(2 * time.Minute)
	logtest.Append(t, log, ref.Aggregate(), &events.KeyRevoked{Code: events.RevokeSuperseded})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 4, Uses: []events.Use{
		use(c.at, "scribe", "acme", ref.Key, events.ReasonKeyRevoked, "203.0.113.7")}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchClose, First: 5})
	waitCopied(t, s, log)
}
