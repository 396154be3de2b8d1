package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/internal/api"
)

// Routes adds the endpoints of the log's tree to mux: C2SP tlog-tiles with the prefix
// /v1/log, for callers with the scope audit:read. A checkpoint and the hashes reveal
// how many events there are, and nothing of any. Entries hold subjects, which name
// tenants: a caller that is restricted to some may not read them.
func (p *Publisher) Routes(mux *http.ServeMux, auth api.Authenticator) {
	routes := &api.Routes{Mux: mux, Auth: auth}
	handle := func(pattern string, serve func(http.ResponseWriter, *api.Request) error) {
		routes.Handle(api.Endpoint{Pattern: pattern, Scope: events.ScopeAuditRead}, serve)
	}
	handle("GET /v1/log/checkpoint", p.checkpoint)
	handle("GET /v1/log/keys", p.keys)
	handle("GET /v1/log/tile/{path...}", p.tile)
}

// firstLimit is how long the first checkpoint is waited for, as after a start.
const firstLimit = 5 * time.Second

// newest returns the newest checkpoint, or why there is none.
func (p *Publisher) newest(ctx context.Context) (*published, error) {
	ctx, cancel := context.WithTimeout(ctx, firstLimit)
	defer cancel()
	select {
	case <-p.first:
		return p.served.Load(), nil
	case <-ctx.Done():
	}
	switch {
	case p.Ready() != nil:
		return nil, api.Unavailable(2, "no checkpoint can be served: see the checkpoints in /readyz of this control")
	case p.cfg.Signer == nil:
		return nil, api.Unavailable(2, "no checkpoint has been signed: this control has no --checkpoint-key, and no other has signed one")
	}
	return nil, api.Unavailable(1, "no checkpoint has been signed yet; try again in a second")
}

func (p *Publisher) checkpoint(w http.ResponseWriter, r *api.Request) error {
	s, err := p.newest(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Write(s.text)
	return nil
}

// KeysView are the public keys with which this control's checkpoints are verified.
type KeysView struct {
	Origin string   `json:"origin"`
	Keys   []string `json:"keys"` // C2SP signed-note verifier keys; none where this control does not sign
}

func (p *Publisher) keys(w http.ResponseWriter, r *api.Request) error {
	v := KeysView{Origin: p.origin, Keys: []string{}}
	if p.cfg.Signer != nil {
		v.Keys = p.cfg.Signer.VKeys()
	}
	api.WriteJSON(w, r.Request, http.StatusOK, api.One{Data: v})
	return nil
}

// tile serves a tile or an entry bundle of the newest checkpoint's tree (C5).
func (p *Publisher) tile(w http.ResponseWriter, r *api.Request) error {
	t, err := tree.ParseTile("tile/" + r.PathValue("path"))
	if err != nil {
		return api.Errorf(http.StatusNotFound, "not_found", "no such tile: want tile/<level>/<index> or tile/entries/<index>, with .p/<width> if it is partial (C2SP tlog-tiles)")
	}
	entries := t.Level == tree.EntriesLevel
	if entries && len(r.Who.Keyspaces)+len(r.Who.Tenants) > 0 {
		return api.Errorf(http.StatusForbidden, "beyond_own_power", "entries name the tenants of all events: this needs a key that is not restricted to keyspaces or tenants; hash tiles need none")
	}
	s, err := p.newest(r.Context())
	if err != nil {
		return err
	}
	if err := t.In(s.head.Size); err != nil {
		return api.Errorf(http.StatusNotFound, "not_found", "no such tile: the newest checkpoint has %d events", s.head.Size)
	}
	var body []byte
	if entries {
		body, err = p.bundle(r.Context(), t)
	} else {
		body, err = tree.ReadTile(p.tree.hashes.Load(), s.head.Size, t)
	}
	switch {
	case errors.Is(err, tree.ErrStored), errors.Is(err, tree.ErrNotInTree):
		return api.Unavailable(2, "the tree of this control is being read from the log again")
	case err != nil:
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if t.Width == tree.TileWidth {
		w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	} else {
		w.Header().Set("Cache-Control", "no-cache")
	}
	w.Write(body)
	return nil
}

// bundleLimit is how long the events of a bundle are waited for.
const bundleLimit = 10 * time.Second

// bundle makes the entries of a bundle from the log, and compares them with the tree.
func (p *Publisher) bundle(ctx context.Context, t tree.Tile) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, bundleLimit)
	defer cancel()
	leaves := t
	leaves.Level = 0
	first := t.Index*tree.TileWidth + 1
	last := first + uint64(t.Width) - 1
	want, err := tree.ReadTile(p.tree.hashes.Load(), last, leaves)
	if err != nil {
		return nil, err
	}
	var out, entry []byte
	err = p.cfg.Log.Leaves(ctx, events.Seq(first), events.Seq(last), math.MaxInt, func(seq events.Seq, subject string, document events.Hash) error {
		entry = tree.AppendEntry(entry[:0], subject, document)
		if hash := tree.EntryHash(entry); string(hash[:]) != string(want[:len(hash)]) {
			return fmt.Errorf("event %d is not the one of the tree: the log or %s was altered", seq, hashesFile)
		}
		want = want[len(tree.Hash{}):]
		out, err = tree.AppendToBundle(out, entry)
		return err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = api.Unavailable(2, "the event log cannot be reached")
	}
	return out, err
}
