package snapshots

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// Sending takes this much of a node at most: one snapshot at a time, sendRate bytes a
// second. A reader that takes less than slowest bytes a second, beside the grace, keeps
// others from the one slot, and is cut off.
const (
	sendRate = 128 << 20
	slowest  = 256 << 10
	grace    = 30 * time.Second
)

// Sender serves snapshots of a node's views to new nodes.
type Sender struct {
	Log    events.LogID
	Views  []projections.View
	Proven func() error // says why the views are not to be sent on (S3); nil = they may be
	Logger *slog.Logger

	sending sync.Mutex // held while a snapshot is sent
}

// Routes adds GET /v1/snapshots/{view}. A snapshot holds digests and rights of all
// keys, and no secret: it is for callers with the scope keys:read that are not
// restricted to keyspaces or tenants.
func (s *Sender) Routes(mux *http.ServeMux, auth api.Authenticator) {
	(&api.Routes{Mux: mux, Auth: auth}).Handle(api.Endpoint{Pattern: "GET /v1/snapshots/{view}", Scope: events.ScopeKeysRead}, s.send)
}

// codeBusy is the problem of a node that can send soon.
const codeBusy = "busy"

func (s *Sender) send(w http.ResponseWriter, r *api.Request) error {
	if len(r.Who.Keyspaces)+len(r.Who.Tenants) > 0 {
		return api.Errorf(http.StatusForbidden, "beyond_own_power", "a snapshot holds all keyspaces and tenants: this needs a key that is not restricted to some")
	}
	view := s.view(r.PathValue("view"))
	switch {
	case view == nil:
		return api.Errorf(http.StatusNotFound, "not_found", "no such view here: every node has keys, and control has directory")
	case view.At() == 0:
		return api.Unavailable(2, "this node has not read the log yet")
	}
	if s.Proven != nil {
		if err := s.Proven(); err != nil {
			return api.Unavailable(60, "%v", err)
		}
	}
	if !s.sending.TryLock() {
		p := api.Errorf(http.StatusServiceUnavailable, codeBusy, "this node is sending a snapshot to another one")
		p.RetryAfter = 2
		return p
	}
	defer s.sending.Unlock()
	began := time.Now()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := &paced{w: w, ctx: r.Context(), recheck: r.Recheck, control: http.NewResponseController(w), began: began}
	seq, err := view.Export(out, s.Log)
	if err != nil {
		// The answer has begun: cut the connection, so that it ends before its sum.
		s.Logger.WarnContext(r.Context(), "a snapshot was not sent to its end", "view", view.Name(), "to", r.Who.Actor.ID, "request_id", api.RequestID(r.Request), "err", err)
		panic(http.ErrAbortHandler)
	}
	s.Logger.InfoContext(r.Context(), "snapshot sent", "view", view.Name(), "seq", uint64(seq), "bytes", out.sent, "to", r.Who.Actor.ID, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

func (s *Sender) view(name string) projections.View {
	for _, v := range s.Views {
		if v.Name() == name {
			return v
		}
	}
	return nil
}

// paced writes no faster than sendRate, as long as the caller is allowed to read, and
// moves the deadline of the answer on with what its reader takes.
type paced struct {
	w       http.ResponseWriter
	ctx     context.Context
	recheck func() error
	control *http.ResponseController
	began   time.Time
	checked time.Time
	sent    int64
}

// recheckEvery is how often the caller's right to read is asked about.
const recheckEvery = 250 * time.Millisecond

func (p *paced) Write(b []byte) (int, error) {
	if now := time.Now(); now.Sub(p.checked) >= recheckEvery {
		if err := p.recheck(); err != nil {
			return 0, err
		}
		p.checked = now
	}
	p.sent += int64(len(b))
	if early := timeOf(p.sent, sendRate) - time.Since(p.began); early > time.Millisecond {
		select {
		case <-time.After(early):
		case <-p.ctx.Done():
			return 0, p.ctx.Err()
		}
	}
	if err := p.control.SetWriteDeadline(p.began.Add(grace + timeOf(p.sent, slowest))); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

// timeOf returns how long n bytes take at the rate, in whole milliseconds: nanoseconds of
// some gigabytes do not fit.
func timeOf(n, perSecond int64) time.Duration {
	return time.Duration(n*1000/perSecond) * time.Millisecond
}
