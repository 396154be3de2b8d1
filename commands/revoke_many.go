package commands

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/projections"
)

// RevokeMany ends the life of all keys that have something in common, as those
// that one operator's key created. Without Confirm it is a preview and writes
// nothing. The preview tells how many keys there are and gives the Confirm that
// revokes exactly them: the keys that were created up to the end of the log at that
// moment.
type RevokeMany struct {
	Keyspace  events.KeyspaceID `json:"keyspace,omitzero"`   // none = every one that the caller reaches
	Tenant    events.TenantID   `json:"tenant,omitzero"`     // none = every one that the caller reaches
	CreatedBy string            `json:"created_by,omitzero"` // the id of a key of the built-in keyspace
	Code      events.RevokeCode `json:"code,omitzero"`       // default "unspecified"
	Reason    string            `json:"reason,omitzero"`

	Confirm string `json:"confirm,omitzero"` // of the preview
	Count   *int   `json:"count,omitzero"`   // the total of the preview; with Confirm
	Cursor  string `json:"cursor,omitzero"`  // next_cursor of the answer before, to the same request
}

// MaxRevoke is the number of keys that one answer tells about.
const MaxRevoke = 100

// revokeAtOnce is how many keys of one request are ended side by side.
const revokeAtOnce = 16

// RevokeStatus says what became, or would become, of one key.
type RevokeStatus string

// The statuses.
const (
	RevokeDone       RevokeStatus = "revoked"
	RevokeRefused    RevokeStatus = "refused"    // Errors say why; the key is as it was
	RevokeAcceptable RevokeStatus = "acceptable" // a preview found nothing against it
)

// RevokeResult is what became of one key.
type RevokeResult struct {
	ID       events.KeyID      `json:"id"`
	Keyspace events.KeyspaceID `json:"keyspace"`
	Tenant   events.TenantID   `json:"tenant"`
	Name     string            `json:"name"`
	Hint     string            `json:"hint"`
	Status   RevokeStatus      `json:"status"`
	Errors   input.FieldErrors `json:"errors,omitempty"`
}

// RevokePage is one answer to RevokeMany.
type RevokePage struct {
	Data       []RevokeResult   `json:"data"`
	NextCursor *string          `json:"next_cursor"`
	Total      int              `json:"total"`             // keys of the preview
	Confirm    string           `json:"confirm,omitzero"`  // of a preview
	Position   *events.Position `json:"position,omitzero"` // of the last event that ended a key of the page

	// ReceiptURL is where the receipt of that event is made. It covers the pages before
	// too: a node that has applied the event has applied all events before it.
	ReceiptURL string `json:"receipt_url,omitzero"`

	last events.KeyRef // the key that it ended
}

// query checks the request and returns what it asks for, without its bounds.
func (c *RevokeMany) query() (q projections.ListQuery, err error) {
	var f input.FieldErrors
	if c.Keyspace == "" && c.Tenant == "" && c.CreatedBy == "" {
		f.Add("created_by", "required", "want at least one of created_by, tenant and keyspace")
	}
	if c.Keyspace != "" {
		if err := c.Keyspace.Validate(); err != nil {
			f.Add("keyspace", "invalid", err.Error())
		}
	}
	if c.Tenant != "" {
		if err := c.Tenant.Validate(); err != nil {
			f.Add("tenant", "invalid", err.Error())
		}
	}
	q = projections.ListQuery{Keyspace: c.Keyspace, Tenant: c.Tenant, Limit: MaxRevoke}
	if c.CreatedBy != "" {
		if q.CreatedBy, err = events.ParseKeyID(c.CreatedBy); err != nil {
			f.Add("created_by", "invalid", err.Error())
		}
	}
	if c.Code != "" {
		if err := c.Code.Validate(); err != nil {
			f.Add("code", "invalid", err.Error())
		}
	}
	checkReason(&f, c.Reason)
	if (c.Confirm == "") != (c.Count == nil) {
		f.Add("count", "required", "want confirm and count together, as a preview gives them (count is its total), or neither for a preview")
	}
	return q, f.OrNil()
}

// RevokeMany previews or revokes one page of keys, each by an append of its own;
// with the cursor of its answer the next. The error is about the whole: the same
// request again goes on where it stopped, since keys that have ended are passed
// over.
func (h *Handler) RevokeMany(ctx context.Context, call *Call, c *RevokeMany) (out RevokePage, done Done, err error) {
	defer h.observe(ctx, call, "revoke_many", h.cfg.Now(), &done, &err)
	q, err := c.query()
	if err != nil {
		return out, done, err
	}
	if _, err := h.catchUp(ctx); err != nil {
		return out, done, err
	}
	q.Now = events.At(h.cfg.Now())
	own, err := h.caller(&call.Principal, events.ScopeKeysWrite, q.Now)
	if err != nil {
		return out, done, err
	}
	if c.Keyspace != "" {
		if err := h.known(&own.Principal, c.Keyspace); err != nil {
			return out, done, err
		}
	}
	q.Lives = true
	preview := c.Confirm == ""
	m := revoker{h, own, call, c, preview}
	if preview {
		q.Until = h.cfg.Dir.At()
		for range m.matching(q) {
			out.Total++
		}
		if out.Total == 0 {
			out.Data = []RevokeResult{}
			return out, done, h.shown(ctx)
		}
		out.Confirm = m.token(q.Until, out.Total)
	} else if q.Until, out.Total, err = m.confirmed(); err != nil {
		return out, done, err
	}
	walk := &page{listing: m.listing("walk", c.Confirm)}
	if c.Cursor != "" {
		if err := walk.read(c.Cursor); err != nil {
			return out, done, err
		}
		q.After = walk.after
	}
	var keys []events.Key
	var last events.Seq // where the last of keys was created
	for created, k := range m.matching(q) {
		if len(keys) == MaxRevoke {
			out.NextCursor = walk.next(last)
			break
		}
		keys, last = append(keys, k), created
	}
	var at int // of keys, the one that ended last
	if out.Data, at, done.Seq, err = m.all(ctx, keys); err != nil {
		return out, done, err
	}
	if done.Seq != 0 {
		out.Position = h.position(done.Seq)
		out.last = events.KeyRef{Keyspace: keys[at].Keyspace, Tenant: keys[at].Tenant, Key: keys[at].ID}
		out.ReceiptURL = "/v1/keys/" + keys[at].ID.String() + receiptSuffix
	}
	return out, done, h.shown(ctx) // a key that is not listed has ended
}

// postRevokeMany answers 200 for every page that was gone through: what became of
// each key is in the list.
func (h *Handler) postRevokeMany(r *request) (*answer, error) {
	var c RevokeMany
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	if err := noPrecondition(r.Header); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	out, done, err := h.RevokeMany(r.Context(), call, &c)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(out.Data, func(k RevokeResult) bool { return beyondPower(k.Errors) }) {
		r.Record(&Refusal{Code: CodeBeyondOwnPower})
	}
	return &answer{status: http.StatusOK, body: out, seq: done.Seq}, nil
}

// revoker is one RevokeMany on its way.
type revoker struct {
	*Handler
	own     *power
	call    *Call
	cmd     *RevokeMany
	preview bool
}

// matching yields the keys that the query asks for and the caller may know of, and
// where each was created.
func (m *revoker) matching(q projections.ListQuery) iter.Seq2[events.Seq, events.Key] {
	return func(yield func(events.Seq, events.Key) bool) {
		for {
			keys, next := m.cfg.Dir.List(q)
			for i := range keys {
				if !sees(&m.own.Principal, &keys[i]) {
					continue
				}
				created, _ := m.cfg.Dir.Created(keys[i].ID)
				if !yield(created, keys[i]) {
					return
				}
			}
			if next == 0 {
				return
			}
			q.After = next
		}
	}
}

// listing ties a token to who asked and for which keys.
func (m *revoker) listing(parts ...string) [32]byte {
	id := m.cfg.Log.ID()
	who := m.call.Principal.Actor
	return digest(append([]string{"keytrail/revoke/v1", string(id[:]), string(who.Kind), who.ID,
		string(m.cmd.Keyspace), string(m.cmd.Tenant), m.cmd.CreatedBy}, parts...)...)
}

// token says which keys a preview has shown: those up to the end of the log as it
// was, so many.
func (m *revoker) token(until events.Seq, total int) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(until))
	b = binary.BigEndian.AppendUint32(b, uint32(total))
	sum := digest(string(b), fmt.Sprintf("%x", m.listing("token")))
	return base64.RawURLEncoding.EncodeToString(append(b, sum[:cursorSum]...))
}

// confirmed reads the token of the request.
func (m *revoker) confirmed() (until events.Seq, total int, err error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(m.cmd.Confirm)
	if err != nil || len(b) != 12+cursorSum {
		return 0, 0, refuse(CodeConfirm, "confirm", "want the confirm of a preview")
	}
	until, total = events.Seq(binary.BigEndian.Uint64(b)), int(binary.BigEndian.Uint32(b[8:]))
	switch {
	case m.token(until, total) != m.cmd.Confirm:
		return 0, 0, refuse(CodeConfirm, "confirm", "this confirms another preview: want that of the same keyspace, tenant and created_by, by the same caller")
	case total != *m.cmd.Count:
		return 0, 0, refuse(CodeConfirm, "count", "the preview told of %d keys, and %d are confirmed", total, *m.cmd.Count)
	}
	return until, total, nil
}

// all ends the keys. Those of the built-in keyspace come last and one by one: each
// decides anew whether an administrator is left. at says which of them the last event of
// all ended, by this request or by another one, and last is its place; 0 when none ended.
func (m *revoker) all(ctx context.Context, keys []events.Key) (out []RevokeResult, at int, last events.Seq, err error) {
	out = make([]RevokeResult, len(keys))
	seqs := make([]events.Seq, len(keys))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(revokeAtOnce)
	for i := range keys {
		if keys[i].Keyspace != events.Builtin {
			g.Go(func() (err error) { out[i], seqs[i], err = m.one(gctx, &keys[i]); return err })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, 0, 0, err
	}
	for i := range keys {
		if keys[i].Keyspace == events.Builtin {
			if out[i], seqs[i], err = m.one(ctx, &keys[i]); err != nil {
				return nil, 0, 0, err
			}
		}
	}
	for i, seq := range seqs {
		if seq > last {
			at, last = i, seq
		}
	}
	return out, at, last, nil
}

// one ends one key, or tells what would come of it. seq is the place of the event that
// ended it, 0 in a preview. The error is one that ends the whole.
func (m *revoker) one(ctx context.Context, k *events.Key) (res RevokeResult, seq events.Seq, err error) {
	res = RevokeResult{ID: k.ID, Keyspace: k.Keyspace, Tenant: k.Tenant, Name: k.Label.Name, Hint: k.Hint, Status: RevokeDone}
	c := &Revoke{Code: m.cmd.Code, Reason: m.cmd.Reason}
	var done Done
	switch {
	case k.ID == m.own.key:
		err = refuse(CodeBeyondOwnPower, "", "this is the key that you are using: revoke it by itself, last")
	case m.preview:
		res.Status = RevokeAcceptable
		err = m.try(ctx, k.ID, c)
	default:
		done, err = m.Change(ctx, m.call, "revoke", k.ID, c)
	}
	var f input.FieldErrors
	switch refusal, ok := errors.AsType[*Refusal](err); {
	case err == nil:
		return res, done.Seq, nil
	case ok && (refusal.Code == CodeAlready || refusal.Code == CodeState): // it has ended since the page was read
		if ended, ok := m.cfg.Dir.Key(k.ID); ok && !m.preview {
			seq = ended.Chain.Seq // the receipt covers this end too
		}
		return res, seq, nil
	case ok:
		f = input.FieldErrors{{Field: refusal.Field, Code: string(refusal.Code), Message: refusal.Detail}}
	case !errors.As(err, &f):
		return res, 0, err
	}
	res.Status, res.Errors = RevokeRefused, f
	return res, 0, nil
}

// try decides the revocation of a key, with every guard, and appends nothing.
func (m *revoker) try(ctx context.Context, id events.KeyID, c *Revoke) error {
	call := *m.call
	call.Command = ""
	_, err := m.change(ctx, &call, id, func(own *power, _ *batch, agg events.Aggregate, k *events.Key, r *Rules) (events.Key, error) {
		b := m.batch(&call) // that nobody appends
		datas, err := c.Decide(k, r, b.now)
		if err != nil {
			return *k, err
		}
		for _, data := range datas {
			if _, err := b.key(agg, k, data); err != nil {
				return *k, err
			}
		}
		return *k, m.guard(own, b)
	})
	return err
}
