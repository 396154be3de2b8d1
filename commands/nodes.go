package commands

import (
	"cmp"
	"net/http"
	"time"

	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
)

// NodeView is one run of a node as this control has observed it. Of an unreadable
// record only the node's name and the state are known; the rest is null.
type NodeView struct {
	Node        events.NodeID      `json:"node"`
	Instance    *events.InstanceID `json:"instance"`
	State       receipts.State     `json:"state"`
	Applied     *events.Seq        `json:"applied"`       // up to which event its view holds the log
	Root        *events.Hash       `json:"root"`          // of the tree over these events; null = none is applied
	RecordAgeMS *int64             `json:"record_age_ms"` // for how long this control has seen no newer record; by its own steady clock
	LifeMS      *int64             `json:"life_ms"`       // for how long the node may answer on its lease
	RecordedAt  *events.Time       `json:"recorded_at"`   // by the log server's clock
	Epoch       *int64             `json:"epoch"`         // of its ledger; null = none is open
	Decisions   *uint64            `json:"decisions"`     // numbered in that epoch
	Release     *events.Release    `json:"release"`       // whose events it reads
}

// ViewNode returns a run as it stands at now, a reading of the observer's clock.
func ViewNode(r *receipts.Run, now time.Time) NodeView {
	v := NodeView{Node: r.Node, State: r.State}
	if r.State == receipts.Unreadable {
		return v
	}
	release := cmp.Or(r.Release, events.FirstRelease)
	v.Release = &release
	age, life := now.Sub(r.Seen).Milliseconds(), r.LifeMS
	v.Instance, v.Applied = &r.Instance, &r.Applied.Size
	if !r.Applied.Root.IsZero() {
		v.Root = &r.Applied.Root
	}
	v.RecordAgeMS, v.LifeMS, v.RecordedAt = &age, &life, &r.Stored
	if r.Epoch != 0 {
		v.Epoch, v.Decisions = &r.Epoch, &r.Decisions
	}
	return v
}

// listNodes lists all runs that have a record; there is one page.
func (h *Handler) listNodes(r *request) (*answer, error) {
	sight, err := h.cfg.Nodes.Look(r.Context(), 0)
	if err != nil {
		return nil, err
	}
	out := make([]NodeView, len(sight.Runs))
	for i := range sight.Runs {
		out[i] = ViewNode(&sight.Runs[i], sight.At)
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out}}, nil
}
