package commands_test

import (
	"net/http"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// GET /v1/nodes shows each run by its record: this control's, and the other.
func TestNodesAreListed(t *testing.T) {
	w := newWorld(t)
	n := w.node("control-1")
	lease := logtest.Lease(w.log.ID(), "edge-1")
	lease.Applied.Size, lease.Applied.Root, lease.Epoch, lease.Decisions = 2, events.Hash{5}, 7, 11
	if err := w.log.Raise(t.Context(), events.Head{Log: w.log.ID(), Size: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.log.Renew(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	rec := n.do(w.root, "GET", "/v1/nodes", "")
	var a struct {
		Data       []map[string]any `json:"data"`
		NextCursor *string          `json:"next_cursor"`
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil || rec.Code != http.StatusOK || len(a.Data) != 2 || a.NextCursor != nil {
		t.Fatal(err, rec.Code, rec.Body)
	}
	for name, want := range map[string]any{"node": "edge-1", "instance": lease.Instance.String(), "state": "live", "applied": 2.0, "root": events.Hash{5}.String(), "life_ms": 10_000.0, "epoch": 7.0, "decisions": 11.0} {
		if got := a.Data[1][name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if a.Data[0]["node"] != "control-1" || a.Data[0]["epoch"] != nil {
		t.Errorf("the first is %v", a.Data[0])
	}
}
