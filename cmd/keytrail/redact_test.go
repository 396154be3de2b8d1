package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

// TestLogLinesHoldNoSecret: in no message and no attribute, of whatever kind.
func TestLogLinesHoldNoSecret(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	operator, foreign := "kt_"+strings.Repeat("aB3", 13)+"x", "a-secret-of-another-issuer"
	keys := projections.NewKeys()
	write := func(a events.Aggregate, d events.Data, seq events.Seq) {
		var c events.Chain
		w := logtest.Stamp(&c, logtest.Event(a, d))
		if err := keys.Apply([]events.Recorded{{Event: w.Event, Seq: seq, Hash: c.Head}}); err != nil {
			t.Fatal(err)
		}
	}
	write(events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_live_"}}, Scopes: []keyspace.ScopeDef{{Name: "read"}}}}, 1)
	write(events.KeyAggregate("ks", "acme", events.KeyID{15: 1}), &events.KeyImported{KeyCreated: events.KeyCreated{
		Digest: events.NewSecret(foreign).Digest(), Name: "n", KeyType: "secret", Hint: "a-se",
	}}, 2)
	for _, tt := range []struct {
		keys    *projections.Keys
		secrets []string
	}{{nil, []string{operator}}, {keys, []string{"sk_live_" + strings.Repeat("0", 32), foreign}}} {
		for _, secret := range tt.secrets {
			var out bytes.Buffer
			a := &app{err: &out}
			a.secrets.known.Store(tt.keys)
			l, err := a.logger(slog.LevelDebug)
			if err != nil {
				t.Fatal(err)
			}
			l.With("with", secret).WithGroup("g").Info("message "+secret, "string", "x "+secret, "err", errors.New("dial "+secret),
				"list", []string{secret}, "bytes", []byte(secret), slog.Group("group", "in", secret), "secret", events.NewSecret(secret), "n", 7)
			if strings.Contains(out.String(), secret) || strings.Count(out.String(), "[secret]") != 8 || !strings.Contains(out.String(), `"n":7`) {
				t.Errorf("%s", out.String())
			}
		}
	}
}
