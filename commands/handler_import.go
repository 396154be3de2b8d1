package commands

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Import makes keys of secrets that there are already, in one atomic append, and
// tells what became of each in the order of the request. The error is about the
// whole: the request itself is at fault, or the log did not answer. Then all of the
// new keys are in the log or none; the same request again tells which.
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
	m := &importer{Handler: h, Import: c, call: *call, keyspace: ks, results: make([]importing, len(c.Keys))}
	m.call.Command = "" // the digest says which ask it is
	if err := m.enter(ctx); err != nil {
		return nil, done, err
	}
	if err := c.check(); err != nil {
		return nil, done, err
	}
	release, err := m.hold(ctx)
	if err != nil {
		return nil, done, err
	}
	defer release()
	if done.Seq, err = m.inTurn(ctx); err != nil {
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
	call     Call
	own      *power // the caller's, as the view had it when the keys were last decided
	keyspace events.KeyspaceID
	results  []importing // of each key, as it was last decided

	// What the keys before will have: they are decided in the order of the request, and
	// of two that cannot both be, the first is imported.
	digests map[events.Digest]events.KeyID
	names   map[name]events.KeyID
}

// importing is the result of one key and what it stands on.
type importing struct {
	ImportResult
	digest events.Digest
	seq    events.Seq // the last event of a key that is there
}

// enter takes the caller's power as it is now, which is never more than it was: the
// keys that are held are those that it reached at first.
func (m *importer) enter(ctx context.Context) (err error) {
	if _, err := m.catchUp(ctx); err != nil {
		return err
	}
	if m.own, err = m.caller(&m.call.Principal, events.ScopeKeysWrite, events.At(m.cfg.Now())); err != nil {
		return err
	}
	m.call.Principal = m.own.Principal
	return m.Handler.known(&m.own.Principal, m.keyspace)
}

// hold waits until nobody else on this node works with the digests and names of the
// keys that the caller reaches. All imports take them in one order, digests first, so
// none waits for one that waits for it.
func (m *importer) hold(ctx context.Context) (release func(), err error) {
	var wanted []name
	for i := range m.Keys {
		if c := &m.Keys[i]; m.own.Reaches(m.keyspace, c.Tenant) { // before anything is told of the key
			if d, ok := ParseDigest(c.Digest); ok {
				wanted = append(wanted, name{name: hex.EncodeToString(d[:])}) // of no tenant: no key's name
			}
			wanted = append(wanted, m.nameOf(i))
		}
	}
	slices.SortFunc(wanted, name.compare)
	return m.Handler.names.takeAll(ctx, slices.Compact(wanted))
}

// importsAtOnce is how many imports of one node are in the log's hands at once. A server
// takes all that has arrived before it passes on or answers anything of it, so many
// large batches at once would keep the events from every view for seconds.
const importsAtOnce = 2

// turnBudget is how long an import waits for its turn.
const turnBudget = 10 * time.Second

// inTurn carries out the import when its turn has come, until the view holds it. It
// returns the last event that the results stand on.
func (m *importer) inTurn(ctx context.Context) (last events.Seq, err error) {
	turn := time.NewTimer(turnBudget)
	defer turn.Stop()
	select {
	case m.imports <- struct{}{}:
		defer func() { <-m.imports }()
	case <-turn.C:
		return 0, &events.StateError{Class: events.ErrUnavailable, Reason: "this node is busy with other imports"}
	case <-ctx.Done():
		return 0, &events.StateError{Class: events.ErrUnavailable, Cause: context.Cause(ctx), Reason: "this node is busy with other imports"}
	}
	if err := m.all(ctx); err != nil {
		return 0, err
	}
	last = m.cfg.Dir.At()
	for i := range m.results {
		last = max(last, m.results[i].seq)
	}
	return last, m.settle(ctx, last)
}

func (m *importer) nameOf(i int) name { return name{m.keyspace, m.Keys[i].Tenant, m.Keys[i].Name} }

// all decides every key and appends those that are new, all or none, and again when
// the history of one has moved on: then it is there, and the others are not.
//
// No history is loaded. The append itself expects that there is none of each key; and
// a key that has one is not decided but found in the view.
func (m *importer) all(ctx context.Context) error {
	for range maxTries {
		if err := m.enter(ctx); err != nil { // the digests and names may have been waited for
			return err
		}
		b, err := m.decide()
		if err != nil {
			return err
		}
		if len(b.writes) == 0 {
			return nil
		}
		if err := m.reserved(b); err != nil {
			return err
		}
		// crash here: nothing is stored.
		last, err := store(ctx, m.cfg.Log, b.writes)
		// crash here: all are stored and not acknowledged; the same import finds them.
		if err == nil {
			m.stored(b, last)
			return nil
		}
		if !errors.Is(err, events.ErrConflict) {
			return err
		}
		if last, err = m.cfg.Log.Last(ctx); err != nil {
			return err
		}
		if err := m.see(ctx, last); err != nil {
			return err
		}
	}
	return fmt.Errorf("decided %d times: %w", maxTries, events.ErrConflict)
}

// maxImportBytes bounds the bytes of one import's events. A definition whose defaults are
// long may make much of a short request.
const maxImportBytes = 16 << 20

// decide decides every key anew, on the view and on the keys before it.
func (m *importer) decide() (*batch, error) {
	m.digests, m.names = map[events.Digest]events.KeyID{}, map[name]events.KeyID{}
	all := m.batch(&m.call)
	made := make(map[events.Digest]bool, len(m.Keys))
	for i := range m.Keys {
		if d, ok := ParseDigest(m.Keys[i].Digest); ok {
			made[d] = true
		}
	}
	size := 0
	for i := range m.Keys {
		r := &m.results[i]
		*r = importing{ImportResult: ImportResult{Index: i}}
		b, err := m.key(i, r, made)
		if err = r.refused(err); err != nil {
			return nil, err
		}
		if r.Status != ImportDone && r.Status != ImportAcceptable {
			continue
		}
		m.digests[r.digest] = r.ID
		if !m.Keys[i].ended() {
			m.names[m.nameOf(i)] = r.ID
		}
		if r.Status != ImportDone {
			continue
		}
		all.writes, all.keys = append(all.writes, b.writes...), append(all.keys, b.keys...)
		for i := range b.writes {
			msg, err := b.writes[i].Encode()
			if err != nil {
				return nil, err
			}
			size += len(msg.Data)
		}
		if size > maxImportBytes {
			return nil, input.FieldErrors{{Field: "keys", Code: "invalid", Message: fmt.Sprintf("the events of the first %d keys are longer than %d MiB together: send fewer keys in one request", i+1, maxImportBytes>>20)}}
		}
	}
	return all, nil
}

// stored notes where the keys of the batch, and those that repeat one, are.
func (m *importer) stored(b *batch, last events.Seq) {
	seq := last - events.Seq(len(b.writes))
	at := make(map[events.KeyID]events.Seq, len(b.writes))
	for i := range b.keys {
		seq++
		at[b.keys[i].after.ID] = seq
	}
	for i := range m.results {
		if r := &m.results[i]; r.seq == 0 {
			r.seq = at[r.ID]
		}
	}
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

// key decides the key at i, and puts into res what is there then. made are the digests
// of the whole import: none of its texts may hold a secret of it.
func (m *importer) key(i int, res *importing, made map[events.Digest]bool) (*batch, error) {
	c := &m.Keys[i]
	if len(c.unread) > 0 {
		return nil, c.unread
	}
	digest, ok := ParseDigest(c.Digest)
	var id events.KeyID // stays zero when there can be no history: Decide says what is wrong
	if ok && c.Tenant.Validate() == nil {
		if !m.own.Reaches(m.keyspace, c.Tenant) {
			return nil, m.reaches(&m.own.Principal, events.KeyAggregate(m.keyspace, c.Tenant, id))
		}
		id = importedKey(m.keyspace, c.Tenant, digest)
		res.digest, res.ID = digest, id
		if m.already(res) {
			return nil, nil
		}
	}
	call := m.call
	if c.Reason != "" {
		call.Reason = c.Reason
	}
	b := m.batch(&call)
	b.made = made
	agg := events.KeyAggregate(m.keyspace, c.Tenant, id)
	r, err := m.rules(m.keyspace, c.Tenant)
	if err != nil {
		return nil, err
	}
	m.holders(m.own, r, c, digest, b.now)
	data, err := c.Decide(r, b.now, m.ImportedFrom)
	if err != nil {
		if m.already(res) { // another node has imported this very key, and it holds the digest and the name
			return nil, nil
		}
		return nil, err
	}
	if _, err := b.key(agg, new(events.Key), data); err != nil {
		return nil, err
	}
	if err := m.guard(m.own, b); err != nil {
		return nil, err
	}
	if m.DryRun {
		res.Status = ImportAcceptable
		return nil, nil
	}
	res.Status = ImportDone
	return b, nil
}

// already reports whether the key was imported, as the view says or by a line before,
// and notes where.
func (m *importer) already(res *importing) bool {
	if res.ID.IsZero() {
		return false
	}
	if holder, ok := m.cfg.Dir.Digest(res.digest); ok && holder == res.ID {
		k, _ := m.cfg.Dir.Key(res.ID)
		res.Status, res.seq = ImportAlready, k.Seq
		return true
	}
	if m.digests[res.digest] == res.ID {
		res.Status = ImportAlready
		return true
	}
	return false
}

// holders fills in who has the digest and the name.
func (m *importer) holders(own *power, r *Rules, c *ImportKey, d events.Digest, now events.Time) {
	if holder, ok := m.cfg.Dir.Digest(d); ok {
		r.DigestHolder = new(m.named(own, holder))
	} else if holder, ok := m.digests[d]; ok {
		r.DigestHolder = &holder
	}
	if r.NameHolder = m.holder(&own.Principal, m.keyspace, c.Tenant, c.Name, now); r.NameHolder.IsZero() {
		r.NameHolder = m.names[name{m.keyspace, c.Tenant, c.Name}]
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
// is there also has its digest. An error is of class events.ErrUnknownOutcome where the
// view does not hold that in time.
func (m *importer) settle(ctx context.Context, last events.Seq) error {
	if err := m.see(ctx, last); err != nil { // what was written is written
		return fmt.Errorf("import: %w: %w", events.ErrUnknownOutcome, err)
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
