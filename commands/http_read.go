package commands

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// pageDefault and pageMax bound the entries of one page.
const (
	pageDefault = 50
	pageMax     = 100
)

// lastUsedBudget is how long an answer waits to learn when keys were last used.
const lastUsedBudget = 500 * time.Millisecond

// read answers one resource as it is now.
func (h *Handler) read(data any, rev uint64) *answer {
	return &answer{status: http.StatusOK, body: api.One{Data: data}, etag: etag(rev)}
}

func (h *Handler) listKeyspaces(r *request) (*answer, error) {
	out := []KeyspaceView{}
	for _, ks := range h.cfg.Dir.Keyspaces() {
		if seesKeyspace(&r.Who, ks.ID) {
			out = append(out, viewKeyspace(&ks))
		}
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out}}, nil
}

func (h *Handler) getKeyspace(r *request) (*answer, error) {
	ks, ok := h.cfg.Dir.Keyspace(r.keyspace())
	if !ok || !seesKeyspace(&r.Who, ks.ID) {
		return nil, noKeyspace(r.keyspace(), ok)
	}
	return h.read(viewKeyspace(&ks), ks.Rev), nil
}

// listKeys lists the keys of one keyspace, or those of all where the path names
// none.
func (h *Handler) listKeys(r *request) (*answer, error) {
	ks := r.keyspace()
	if ks != "" {
		if err := h.known(&r.Who, ks); err != nil {
			return nil, err
		}
	}
	now := events.At(h.cfg.Now())
	query := r.Query
	q := projections.ListQuery{
		Keyspace: ks, Now: now,
		Tenant: events.TenantID(query.Get("tenant")), Status: events.Status(query.Get("status")), Name: query.Get("name"),
	}
	var f input.FieldErrors
	if query.Has("tenant") && q.Tenant.Validate() != nil {
		f.Add("tenant", "invalid", q.Tenant.Validate().Error())
	}
	switch q.Status {
	case events.StatusActive, events.StatusDisabled, events.StatusRevoked, events.StatusExpired:
	default:
		if query.Has("status") {
			f.Add("status", "invalid", "want active, disabled, revoked or expired")
		}
	}
	if err := input.CheckText(q.Name, 100); err != nil {
		f.Add("name", "invalid", err.Error())
	}
	if query.Has("created_by") {
		var err error
		if q.CreatedBy, err = events.ParseKeyID(query.Get("created_by")); err != nil {
			f.Add("created_by", "invalid", err.Error())
		}
	}
	p, err := h.page(&f, r, "keys", string(ks), string(q.Tenant), string(q.Status), q.Name, q.CreatedBy.String())
	if err != nil {
		return nil, err
	}
	if ks != events.Builtin && ks != "" {
		q.Tenants = r.Who.Tenants
	}
	q.After = p.after
	out := []KeyView{}
	for {
		q.Limit = p.limit - len(out)
		keys, next := h.cfg.Dir.List(q)
		for i := range keys {
			if sees(&r.Who, &keys[i]) {
				out = append(out, ViewKey(&keys[i], now))
			}
		}
		q.After = next
		if next == 0 || len(out) == p.limit {
			break
		}
	}
	h.fillLastUsed(r.Context(), out)
	return &answer{status: http.StatusOK, body: api.List{Data: out, NextCursor: p.next(q.After)}}, nil
}

func (h *Handler) getKey(r *request) (*answer, error) {
	id, err := r.keyID()
	if err != nil {
		return nil, err
	}
	k, ok := h.cfg.Dir.Key(id)
	if !ok || !sees(&r.Who, &k) {
		return nil, noKey(id, ok)
	}
	if r.Query.Has("as_of") {
		return h.getKeyAsOf(r, &k)
	}
	view := []KeyView{ViewKey(&k, events.At(h.cfg.Now()))}
	h.fillLastUsed(r.Context(), view)
	return h.read(view[0], k.Rev), nil
}

// getKeyAsOf answers the key as its events up to the instant say.
func (h *Handler) getKeyAsOf(r *request, k *events.Key) (*answer, error) {
	at, err := events.ParseTimeLenient(r.Query.Get("as_of"))
	if err != nil {
		return nil, input.FieldErrors{{Field: "as_of", Code: "invalid", Message: err.Error()}}
	}
	if now := events.At(h.cfg.Now()); at > now {
		return nil, input.FieldErrors{{Field: "as_of", Code: "future", Message: "want an instant that has passed"}}
	}
	history, err := h.history(r.Context(), k)
	if err != nil {
		return nil, err
	}
	n := 0
	for n < len(history) && history[n].Time <= at {
		n++
	}
	if n == 0 {
		return nil, refuse(CodeNotFound, "", "key %s did not exist at %s", k.ID, at)
	}
	then, err := events.FoldKey(history[:n])
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: api.One{Data: ViewKey(&then, at)}}, nil
}

func (h *Handler) getHistory(r *request) (*answer, error) {
	id, err := r.keyID()
	if err != nil {
		return nil, err
	}
	k, ok := h.cfg.Dir.Key(id)
	if !ok || !sees(&r.Who, &k) {
		return nil, noKey(id, ok)
	}
	var f input.FieldErrors
	p, err := h.page(&f, r, "history", id.String())
	if err != nil {
		return nil, err
	}
	if h.cfg.Walk != nil {
		read := &events.AuditQueried{Kind: "history", Filter: map[string]string{"key": id.String()}}
		if p.walk, err = h.cfg.Walk(r.Context(), &r.Who, p.walk, read); err != nil {
			return nil, err
		}
	}
	history, err := h.history(r.Context(), &k)
	if err != nil {
		return nil, err
	}
	out := []api.EventView{}
	var next events.Seq
	for i := range history {
		if history[i].Seq <= p.after {
			continue
		}
		if len(out) == p.limit {
			next = history[i-1].Seq
			break
		}
		e := api.ViewEvent(&history[i])
		e.Actor.Name = h.nameOf(&r.Who, e.Actor.Actor)
		out = append(out, e)
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out, NextCursor: p.next(next)}}, nil
}

// history loads the history of a key of the view, which is caught up: what does not
// reach the view's key is of a server that is behind.
func (h *Handler) history(ctx context.Context, k *events.Key) ([]events.Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, proofBudget)
	defer cancel()
	history, err := h.cfg.Log.Load(ctx, events.KeyAggregate(k.Keyspace, k.Tenant, k.ID))
	if err == nil && uint64(len(history)) < k.Rev {
		err = fmt.Errorf("%w: the log answers with %d of %d events of key %s", events.ErrUnavailable, len(history), k.Rev, k.ID)
	}
	if err != nil {
		return nil, err
	}
	return history, h.see(ctx, history[len(history)-1].Seq)
}

// nameOf returns the present name of a key that is an actor, "" for a component and
// for a key that the principal may not know of.
func (h *Handler) nameOf(p *events.Principal, actor events.Actor) string {
	id, err := events.ParseKeyID(actor.ID)
	if err != nil {
		return ""
	}
	k, ok := h.cfg.Dir.Key(id)
	if !ok || !sees(p, &k) {
		return ""
	}
	return k.Label.Name
}

func (h *Handler) listRoles(r *request) (*answer, error) {
	ref := r.roleRef()
	if err := h.known(&r.Who, ref.Keyspace); err != nil {
		return nil, err
	}
	if ref.Tenant.Validate() != nil {
		return nil, refuse(CodeNotFound, "", "there is no such tenant")
	}
	out := []RoleView{}
	if seesRoles(&r.Who, ref.Keyspace, ref.Tenant) {
		for _, role := range h.cfg.Dir.Roles(ref.Keyspace, ref.Tenant) {
			out = append(out, viewRole(&role))
		}
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out}}, nil
}

func (h *Handler) getRole(r *request) (*answer, error) {
	ref := r.roleRef()
	role, ok := h.cfg.Dir.Role(ref.Keyspace, ref.Tenant, ref.Role)
	if !ok || !role.Exists() || !seesRoles(&r.Who, ref.Keyspace, ref.Tenant) {
		return nil, notFound(ok && role.Exists(), "there is no such role")
	}
	return h.read(viewRole(&role), role.Rev), nil
}

// fillLastUsed tells when the keys were last used, where that can be learned in
// time. It never fails an answer: the record of uses lives elsewhere, and while it
// cannot be asked the answer leaves the member out.
func (h *Handler) fillLastUsed(ctx context.Context, views []KeyView) {
	if h.cfg.LastUsed == nil || len(views) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastUsedBudget)
	defer cancel()
	ids := make([]events.KeyID, len(views))
	for i := range views {
		ids[i] = views[i].ID
	}
	used, err := h.cfg.LastUsed(ctx, ids)
	if err != nil {
		h.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "last use not known", slog.Int("keys", len(ids)), slog.Any("err", err))
		return
	}
	for i := range views {
		views[i].LastUsedAt = Used(used[views[i].ID])
	}
}

// page is one page of one listing, by a cursor that fits no other.
type page struct {
	after   events.Seq
	walk    events.Seq // of the first page's event in the read log; 0 where none is written
	limit   int
	listing [32]byte
}

// cursorSum is how many bytes of checksum follow the two sequences in a cursor.
const cursorSum = 8

// page reads cursor and limit, after which all faults of the query are known.
func (h *Handler) page(f *input.FieldErrors, r *request, listing ...string) (*page, error) {
	id := h.cfg.Log.ID()
	p := &page{limit: pageDefault, listing: digest(append([]string{"keytrail/cursor/v1", string(id[:])}, listing...)...)}
	query := r.Query
	if query.Has("limit") {
		n, err := strconv.Atoi(query.Get("limit"))
		if err != nil || n < 1 || n > pageMax {
			f.Add("limit", "invalid", fmt.Sprintf("want an integer from 1 to %d", pageMax))
		}
		p.limit = n
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if !query.Has("cursor") {
		return p, nil
	}
	return p, p.read(query.Get("cursor"))
}

// read reads a cursor of this listing.
func (p *page) read(cursor string) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) != 16+cursorSum || subtle.ConstantTimeCompare(b[16:], p.sum(b[:16])) != 1 {
		return refuse(CodeCursor, "cursor", "want a next_cursor of this very listing, with the same filters")
	}
	p.after, p.walk = events.Seq(binary.BigEndian.Uint64(b)), events.Seq(binary.BigEndian.Uint64(b[8:]))
	return nil
}

// next returns the cursor of the page after seq, null for 0.
func (p *page) next(seq events.Seq) *string {
	if seq == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(seq)), uint64(p.walk))
	s := base64.RawURLEncoding.EncodeToString(append(b, p.sum(b)...))
	return &s
}

// sum ties what a cursor says to the listing. It tells a mistake, it is no signature:
// what a reader may see is asked anew on every page.
func (p *page) sum(says []byte) []byte {
	d := digest(string(p.listing[:]), string(says))
	return d[:cursorSum]
}
