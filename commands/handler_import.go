package commands

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// importAtOnce is how many keys of one import are appended side by side: enough
// to keep the log busy while it syncs, few enough to leave others their turn.
const importAtOnce = 16

// Import makes keys of secrets that there are already, each by an append of its
// own, and tells what became of each in the order of the request. The error is
// about the whole: the request itself is at fault, or the log did not answer. Then
// some of the keys may be in the log; the same request again tells which.
//
// What holds between control nodes: the same key imported by many at once is one
// event, since its id and so its history are the same for all. Under two tenants
// it has two histories, and two nodes may each append an event in the same few
// milliseconds. Then the first on the log keeps the digest (D20), on every node
// and for ever; the answer about the later one, given only when this node's view
// holds it, is digest_known, although it was written and is listed. Nothing ever
// answers to it, and it should be revoked. One node alone writes no such key.
// Names are as exact as in Create.
func (h *Handler) Import(ctx context.Context, call *Call, ks events.KeyspaceID, c *Import) (out []ImportResult, done Done, err error) {
	defer h.observe(ctx, call, "import", h.cfg.Now(), &done, &err)
	if ks == events.Builtin {
		return nil, done, refuse(CodeBuiltinProtected, "", "keyspace %s guards Keytrail itself: its keys are created here and not imported", input.Quote(ks))
	}
	if _, err := h.catchUp(ctx); err != nil {
		return nil, done, err
	}
	own, err := h.caller(&call.Principal, events.ScopeKeysWrite, events.At(h.cfg.Now()))
	if err != nil {
		return nil, done, err
	}
	if err := h.known(&own.Principal, ks); err != nil {
		return nil, done, err
	}
	if err := c.check(); err != nil {
		return nil, done, err
	}
	m := &importer{
		Handler: h, Import: c, call: call, own: own, keyspace: ks,
		results:        make([]importing, len(c.Keys)),
		plannedDigests: map[events.Digest]events.KeyID{}, plannedNames: map[name]events.KeyID{},
	}
	done.Seq = h.cfg.Dir.At()
	if err := m.all(ctx); err != nil {
		return nil, done, err
	}
	for i := range m.results {
		done.Seq = max(done.Seq, m.results[i].seq)
	}
	if err := m.settle(ctx, done.Seq); err != nil {
		return nil, done, err
	}
	if err := h.acknowledge(ctx, false, h.cfg.Dir.At()); err != nil { // the view has settled what the results say
		return nil, done, err
	}
	out = make([]ImportResult, len(m.results))
	for i := range out {
		out[i] = m.results[i].ImportResult
		h.metrics.imported.WithLabelValues(string(out[i].Status)).Inc()
	}
	return out, done, nil
}

// importer is one import on its way.
type importer struct {
	*Handler
	*Import
	call     *Call
	own      *power // the caller's when the import began; each key is decided on the present one
	keyspace events.KeyspaceID
	results  []importing // each written by the one goroutine that works on it

	// What a dry run would have written, for its later keys. Written between the
	// keys that are decided side by side, not during.
	plannedDigests map[events.Digest]events.KeyID
	plannedNames   map[name]events.KeyID
}

// importing is the result of one key and what it stands on.
type importing struct {
	ImportResult
	digest events.Digest
	seq    events.Seq // the last event of a key that is there
}

// all decides every key. Keys that share a digest or a name with an earlier one
// wait for it: of two that cannot both be, the first in the request is imported.
func (m *importer) all(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(importAtOnce)
	var repeats []int
	digests, names := map[events.Digest]bool{}, map[name]bool{}
	for i := range m.Keys {
		d, ok := ParseDigest(m.Keys[i].Digest)
		n := m.nameOf(i)
		repeat := ok && digests[d] || names[n]
		digests[d], names[n] = true, true
		if repeat {
			repeats = append(repeats, i)
			continue
		}
		g.Go(func() error { return m.one(gctx, i) })
	}
	if err := g.Wait(); err != nil || len(repeats) == 0 {
		return err
	}
	for i := range m.results {
		m.plan(i)
	}
	for _, i := range repeats {
		if err := m.one(ctx, i); err != nil {
			return err
		}
		m.plan(i)
	}
	return nil
}

func (m *importer) nameOf(i int) name { return name{m.keyspace, m.Keys[i].Tenant, m.Keys[i].Name} }

// plan notes what a dry run would have written.
func (m *importer) plan(i int) {
	if r := &m.results[i]; r.Status == ImportAcceptable {
		m.plannedDigests[r.digest] = r.ID
		if !m.Keys[i].ended() {
			m.plannedNames[m.nameOf(i)] = r.ID
		}
	}
}

// one decides the key at i and keeps what became of it. The error is one that
// ends the whole import.
func (m *importer) one(ctx context.Context, i int) error {
	r := &m.results[i]
	r.Index = i
	return r.refused(m.key(ctx, &m.Keys[i], r))
}

// refused makes a refusal of a key its result, and returns any other error.
func (r *importing) refused(err error) error {
	var f input.FieldErrors
	switch refusal, ok := errors.AsType[*Refusal](err); {
	case err == nil:
		return nil
	case ok:
		f = input.FieldErrors{{Field: refusal.Field, Code: string(refusal.Code), Message: refusal.Detail}}
	case !errors.As(err, &f):
		return err
	}
	r.Status, r.ID, r.Errors = ImportRefused, events.KeyID{}, f
	return nil
}

// key decides one key and appends it, and puts into res what is there then.
func (m *importer) key(ctx context.Context, c *ImportKey, res *importing) error {
	if len(c.unread) > 0 {
		return c.unread
	}
	digest, ok := ParseDigest(c.Digest)
	var id events.KeyID // stays zero when there is no history to ask: Decide says what is wrong
	if ok && c.Tenant.Validate() == nil {
		if !m.own.Reaches(m.keyspace, c.Tenant) { // before anything is told of the key
			return m.reaches(&m.own.Principal, events.KeyAggregate(m.keyspace, c.Tenant, id))
		}
		release, err := m.hold(ctx, digest, name{m.keyspace, c.Tenant, c.Name})
		if err != nil {
			return err
		}
		defer release()
		id = importedKey(m.keyspace, c.Tenant, digest)
		res.digest, res.ID = digest, id
		if m.already(res) { // most keys of an import that is carried on: no need to ask the log
			return nil
		}
	}
	call := *m.call
	call.Command = "" // the digest says which ask it is
	if c.Reason != "" {
		call.Reason = c.Reason
	}
	agg := events.KeyAggregate(m.keyspace, c.Tenant, id)
	out, err := run(ctx, m.Handler, &call, task[events.Key]{
		scope:     events.ScopeKeysWrite,
		aggregate: agg,
		fold:      events.FoldKey,
		batched:   true,
		decide: func(own *power, b *batch, k *events.Key) (events.Key, error) {
			// Another node may have imported this very key since the load; the view
			// may hold that by now.
			if k.Exists() || !id.IsZero() && m.plannedDigests[digest] == id || m.already(res) {
				res.Status = ImportAlready
				return *k, nil
			}
			r, err := m.rules(m.keyspace, c.Tenant)
			if err != nil {
				return *k, err
			}
			m.holders(own, r, c, digest, b.now)
			data, err := c.Decide(r, b.now, m.ImportedFrom)
			if err != nil {
				return *k, err
			}
			if m.DryRun {
				res.Status = ImportAcceptable
				return *k, nil
			}
			res.Status = ImportDone
			return b.key(agg, k, data)
		},
	})
	res.seq = max(res.seq, out.seq)
	return err
}

// already reports whether the view says that the key was imported, and notes where.
func (m *importer) already(res *importing) bool {
	holder, ok := m.cfg.Dir.Digest(res.digest)
	if !ok || holder != res.ID {
		return false
	}
	k, _ := m.cfg.Dir.Key(res.ID)
	res.Status, res.seq = ImportAlready, k.Seq
	return true
}

// hold waits until nobody else on this node works with the digest or the name. The
// digest comes first, always, so that nobody who waits for a name holds up somebody
// who waits for a digest.
func (m *importer) hold(ctx context.Context, d events.Digest, n name) (release func(), err error) {
	releaseDigest, err := m.names.take(ctx, name{name: hex.EncodeToString(d[:])}) // of no tenant: no key's name
	if err != nil {
		return nil, err
	}
	releaseName, err := m.names.take(ctx, n)
	if err != nil {
		releaseDigest()
		return nil, err
	}
	return func() { releaseName(); releaseDigest() }, nil
}

// holders fills in who has the digest and the name.
func (m *importer) holders(own *power, r *Rules, c *ImportKey, d events.Digest, now events.Time) {
	if holder, ok := m.cfg.Dir.Digest(d); ok {
		r.DigestHolder = new(m.named(own, holder))
	} else if holder, ok := m.plannedDigests[d]; ok {
		r.DigestHolder = &holder
	}
	if r.NameHolder = m.holder(&own.Principal, m.keyspace, c.Tenant, c.Name, now); r.NameHolder.IsZero() {
		r.NameHolder = m.plannedNames[name{m.keyspace, c.Tenant, c.Name}]
	}
}

// named returns the id, zero when the caller may not know of the key.
func (m *importer) named(own *power, id events.KeyID) events.KeyID {
	if k, ok := m.cfg.Dir.Key(id); ok && sees(&own.Principal, &k) {
		return id
	}
	return events.KeyID{}
}

// settle asks the view, once it holds all that was written, whether each key that
// is there also has its digest.
func (m *importer) settle(ctx context.Context, last events.Seq) error {
	if err := m.see(ctx, last); err != nil {
		return err
	}
	for i := range m.results {
		r := &m.results[i]
		if r.Status != ImportDone && (r.Status != ImportAlready || r.seq == 0) {
			continue
		}
		holder, ok := m.cfg.Dir.Digest(r.digest)
		if !ok {
			return fmt.Errorf("key %s stands at %d, and this node's view at %d does not know its digest", r.ID, r.seq, m.cfg.Dir.At())
		}
		if holder != r.ID {
			late := digestKnown(m.named(m.own, holder))
			late.Detail += fmt.Sprintf("; key %s, imported at the same moment, came later in the log and is never answered for: revoke it", r.ID)
			if err := r.refused(late); err != nil {
				return err
			}
		}
	}
	return nil
}
