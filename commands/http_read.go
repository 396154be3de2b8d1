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
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/schemas/api"
)

// pageDefault and pageMax bound the entries of one page.
const (
	pageDefault = 50
	pageMax     = 100
)

// lastUsedBudget is how long an answer waits to learn when keys were last used.
const lastUsedBudget = 500 * time.Millisecond

func (h *Handler) listKeyspaces(r *request) (*answer, error) {
	out := []KeyspaceView{}
	for _, ks := range h.cfg.Dir.Keyspaces() {
		if seesKeyspace(&r.who, ks.ID) {
			out = append(out, viewKeyspace(&ks))
		}
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out}}, nil
}

func (h *Handler) getKeyspace(r *request) (*answer, error) {
	ks, ok := h.cfg.Dir.Keyspace(r.keyspace())
	if !ok || !seesKeyspace(&r.who, ks.ID) {
		return nil, noKeyspace(r.keyspace())
	}
	return &answer{status: http.StatusOK, body: api.One{Data: viewKeyspace(&ks)}}, nil
}

func (h *Handler) listKeys(r *request) (*answer, error) {
	ks := r.keyspace()
	if _, err := h.rules(&r.who, ks, ""); err != nil {
		return nil, err
	}
	now := events.At(h.cfg.Now())
	query := r.URL.Query()
	q := projections.ListQuery{
		Keyspace: ks, Now: now,
		Tenant: events.TenantID(query.Get("tenant")), Status: events.Status(query.Get("status")), Name: query.Get("name"),
	}
	var f events.FieldErrors
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
	if err := events.CheckText(q.Name, 100); err != nil {
		f.Add("name", "invalid", err.Error())
	}
	p, err := h.page(&f, r, "keys", string(ks), string(q.Tenant), string(q.Status), q.Name)
	if err != nil {
		return nil, err
	}
	if ks != events.Builtin {
		q.Tenants = r.who.Tenants
	}
	q.After = p.after
	out := []KeyView{}
	for {
		q.Limit = p.limit - len(out)
		keys, next := h.cfg.Dir.List(q)
		for i := range keys {
			if sees(&r.who, &keys[i]) {
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
	if !ok || !sees(&r.who, &k) {
		return nil, noKey(id)
	}
	if r.URL.Query().Has("as_of") {
		return h.getKeyAsOf(r, &k)
	}
	view := []KeyView{ViewKey(&k, events.At(h.cfg.Now()))}
	h.fillLastUsed(r.Context(), view)
	return &answer{status: http.StatusOK, body: api.One{Data: view[0]}}, nil
}

// getKeyAsOf answers the key as its events up to the instant say.
func (h *Handler) getKeyAsOf(r *request, k *events.Key) (*answer, error) {
	at, err := events.ParseTimeLenient(r.URL.Query().Get("as_of"))
	if err != nil {
		return nil, events.FieldErrors{{Field: "as_of", Code: "invalid", Message: err.Error()}}
	}
	if now := events.At(h.cfg.Now()); at > now {
		return nil, events.FieldErrors{{Field: "as_of", Code: "future", Message: "want an instant that has passed"}}
	}
	history, err := h.cfg.Log.Load(r.Context(), events.KeyAggregate(k.Keyspace, k.Tenant, k.ID))
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
	if !ok || !sees(&r.who, &k) {
		return nil, noKey(id)
	}
	var f events.FieldErrors
	p, err := h.page(&f, r, "history", id.String())
	if err != nil {
		return nil, err
	}
	if h.cfg.Record != nil {
		read := &events.AuditQueried{Kind: "history", Filter: map[string]string{"key": id.String()}}
		if err := h.cfg.Record(r.Context(), &r.who, read); err != nil {
			return nil, err
		}
	}
	history, err := h.cfg.Log.Load(r.Context(), events.KeyAggregate(k.Keyspace, k.Tenant, k.ID))
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
		out = append(out, api.ViewEvent(&history[i]))
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out, NextCursor: p.next(next)}}, nil
}

func (h *Handler) listRoles(r *request) (*answer, error) {
	ref := r.roleRef()
	if _, err := h.rules(&r.who, ref.Keyspace, ref.Tenant); err != nil {
		return nil, err
	}
	out := []RoleView{}
	if seesRoles(&r.who, ref.Keyspace, ref.Tenant) {
		for _, role := range h.cfg.Dir.Roles(ref.Keyspace, ref.Tenant) {
			out = append(out, viewRole(&role))
		}
	}
	return &answer{status: http.StatusOK, body: api.List{Data: out}}, nil
}

func (h *Handler) getRole(r *request) (*answer, error) {
	ref := r.roleRef()
	role, ok := h.cfg.Dir.Role(ref.Keyspace, ref.Tenant, ref.Role)
	if !ok || !role.Exists() || !seesRoles(&r.who, ref.Keyspace, ref.Tenant) {
		return nil, refuse(CodeNotFound, "", "there is no such role")
	}
	return &answer{status: http.StatusOK, body: api.One{Data: viewRole(&role)}}, nil
}

// fillLastUsed tells when the keys were last used, where that can be learned in
// time. It never fails an answer: the record of uses lives elsewhere.
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
		views[i].LastUsedAt = null(used[views[i].ID])
	}
}

// page is one page of one listing, by a cursor that fits no other.
type page struct {
	after   events.Seq
	limit   int
	listing [32]byte
}

// cursorSum is how many bytes of checksum follow the sequence in a cursor.
const cursorSum = 8

// page reads cursor and limit, after which all faults of the query are known.
func (h *Handler) page(f *events.FieldErrors, r *request, listing ...string) (*page, error) {
	id := h.cfg.Log.ID()
	p := &page{limit: pageDefault, listing: digest(append([]string{"keytrail/cursor/v1", string(id[:])}, listing...)...)}
	query := r.URL.Query()
	if query.Has("limit") {
		n, err := strconv.Atoi(query.Get("limit"))
		if err != nil || n < 1 || n > pageMax {
			f.Add("limit", "invalid", fmt.Sprintf("want 1 to %d", pageMax))
		}
		p.limit = n
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if !query.Has("cursor") {
		return p, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(query.Get("cursor"))
	if err != nil || len(b) != 8+cursorSum || subtle.ConstantTimeCompare(b[8:], p.sum(b[:8])) != 1 {
		return nil, refuse(CodeCursor, "cursor", "want a next_cursor of this very listing, with the same filters")
	}
	p.after = events.Seq(binary.BigEndian.Uint64(b))
	return p, nil
}

// next returns the cursor of the page after seq, null for 0.
func (p *page) next(seq events.Seq) *string {
	if seq == 0 {
		return nil
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(seq))
	s := base64.RawURLEncoding.EncodeToString(append(b, p.sum(b)...))
	return &s
}

// sum ties a sequence to the listing. It tells a mistake, it is no signature:
// what a reader may see is asked anew on every page.
func (p *page) sum(seq []byte) []byte {
	d := digest(string(p.listing[:]), string(seq))
	return d[:cursorSum]
}
