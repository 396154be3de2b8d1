package eventlog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestCheckpointsContract(t *testing.T) {
	logtest.TestCheckpoints(t, func(t *testing.T) events.Checkpoints { return contractLog(t).Checkpoints() })
}

// Old checkpoints make room for new ones, and the newest stays, however small the
// stream is.
func TestTheNewestCheckpointStays(t *testing.T) {
	s := testServer(t, server.Config{})
	initLog(t, s)
	admin, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := admin.Stream(t.Context(), checkpointStream)
	if err != nil {
		t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxBytes = 3 * events.MaxCheckpoint
	if _, err := admin.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	c := openLog(t, conn(t, s.Connect), Options{}).Checkpoints()
	var after events.Seq
	for i := range 10 {
		text := fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", events.MaxCheckpoint-10))
		if after, err = c.Append(t.Context(), after, text); err != nil {
			t.Fatal(err)
		}
		got, err := c.Last(t.Context())
		if err != nil || got.Seq != after || string(got.Text) != string(text) {
			t.Fatalf("checkpoint %d: %d, %v", i, got.Seq, err)
		}
	}
	info, err := stream.Info(t.Context())
	if err != nil || info.State.FirstSeq == 1 {
		t.Errorf("%+v, %v: nothing was forgotten, so the test shows nothing", info, err)
	}
}
