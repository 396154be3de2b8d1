package commands

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// Config is what a Handler works with.
type Config struct {
	Log    events.Log             // required
	Dir    *projections.Directory // required; somebody else lets it follow Log
	Now    func() time.Time       // default time.Now
	Rand   io.Reader              // default crypto/rand; safe for concurrent use
	Node   events.NodeID          // names this process in the events' source
	Logger *slog.Logger           // default slog.Default

	// LastUsed tells when keys were last used, for reading answers; best effort.
	// nil: never known.
	LastUsed func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error)
}

// Handler carries out commands. It is safe for concurrent use and any number of
// them may work on one log.
type Handler struct {
	cfg     Config
	source  string
	names   names
	metrics *metrics
}

// New returns a Handler.
func New(cfg Config) *Handler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Handler{cfg: cfg, source: "/keytrail/control/" + string(cfg.Node), metrics: newMetrics()}
}

// Call is what comes with a command: who asks, why, and under which command id.
type Call struct {
	Principal events.Principal
	Reason    string // the events' reason; the command has checked it
	Command   string // CommandID, "" without an idempotency key
}

// Done is the outcome of a command on a key.
type Done struct {
	Key      events.Key
	Secret   events.Secret // of a key that was made just now; zero otherwise (C4)
	Seq      events.Seq    // where the command's events are; the key's last event when it changed nothing
	Replayed bool          // the command had been carried out before
}

// Change is a command on one existing key. Decide is pure (C1): the events, none
// when all is as asked, or events.FieldErrors, or a *Refusal.
type Change interface {
	Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error)
}

// maxTries bounds how often a command is decided again because the history moved
// on. Each conflict means that another command went through.
const maxTries = 8

// catchUpBudget is how long a command waits for this node's own view, and
// applyBudget how long an answer waits for it to hold what was written.
const (
	catchUpBudget = 5 * time.Second
	applyBudget   = time.Second
)

// Create makes a key in the keyspace. Errors: events.FieldErrors, *Refusal, and
// the classes of events.Log.
func (h *Handler) Create(ctx context.Context, call *Call, ks events.KeyspaceID, c *Create) (done Done, err error) {
	defer h.observe(ctx, call, "create", h.cfg.Now(), &done, &err)
	release, err := h.names.take(ctx, name{ks, c.Tenant, c.Name})
	if err != nil {
		return done, err
	}
	defer release()
	if err := h.catchUp(ctx); err != nil {
		return done, err
	}
	r, err := h.rules(&call.Principal, ks, c.Tenant)
	if err != nil {
		return done, err
	}
	if c.Tenant.Validate() != nil {
		_, err := c.Decide(r, events.At(h.cfg.Now()), events.Digest{}, "")
		return done, err
	}
	if ks != events.Builtin && !call.Principal.Reaches(ks, c.Tenant) {
		return done, refuse(CodeBeyondOwnPower, "tenant", "tenant %q is out of the reach of your own key", c.Tenant)
	}
	id, err := h.newKeyID(call, ks, c.Tenant)
	if err != nil {
		return done, err
	}
	agg := events.KeyAggregate(ks, c.Tenant, id)
	var secret events.Secret
	out, err := run(ctx, h, call, task[events.Key]{
		aggregate: agg,
		fold:      events.FoldKey,
		decide: func(b *batch, k *events.Key) (events.Key, error) {
			r, err := h.rules(&call.Principal, ks, c.Tenant)
			if err != nil {
				return *k, err
			}
			r.NameHolder = h.holder(ks, c.Tenant, c.Name, b.now)
			var hint string
			if t, err := c.KeyType(r.Definition); err == nil {
				if secret, err = NewSecret(t, h.cfg.Rand); err != nil {
					return *k, err
				}
				hint = t.Hint(secret.Reveal())
			}
			data, err := c.Decide(r, b.now, secret.Digest(), hint)
			if err != nil {
				return *k, err
			}
			after, err := b.key(agg, k, data)
			if err != nil {
				return *k, err
			}
			return after, mayTouch(&call.Principal, r, &after)
		},
	})
	if err != nil {
		return done, err
	}
	done = Done{Key: out.state, Seq: out.seq, Replayed: out.replayed}
	if !out.replayed {
		done.Secret = secret
	}
	return done, nil
}

// Change carries out a command on a key. Errors as for Create.
func (h *Handler) Change(ctx context.Context, call *Call, command string, id events.KeyID, c Change) (done Done, err error) {
	defer h.observe(ctx, call, command, h.cfg.Now(), &done, &err)
	decide := func(b *batch, agg events.Aggregate, k *events.Key, r *Rules) (events.Key, error) {
		if p, ok := c.(*Patch); ok && p.Name != nil {
			r.NameHolder = h.holder(k.Keyspace, k.Tenant, *p.Name, b.now)
		}
		datas, err := c.Decide(k, r, b.now)
		if err != nil {
			return *k, err
		}
		after := *k
		for _, data := range datas {
			if after, err = b.key(agg, &after, data); err != nil {
				return *k, err
			}
		}
		if administers(k, b.now) && !administers(&after, b.now) && !h.otherAdmin(k.ID, b.now) {
			return *k, refuse(CodeLastAdmin, "", "no other active key of keyspace %q has scope %q without a restriction: make one first", events.Builtin, events.ScopeAdmin)
		}
		return after, nil
	}
	if p, ok := c.(*Patch); ok && p.Name != nil {
		if err := h.catchUp(ctx); err != nil {
			return done, err
		}
		ref, _ := h.cfg.Dir.Ref(id) // when there is none, change says so
		release, err := h.names.take(ctx, name{ref.Keyspace, ref.Tenant, *p.Name})
		if err != nil {
			return done, err
		}
		defer release()
	}
	return h.change(ctx, call, id, decide)
}

// Rotate gives a key a successor, which is the key of the outcome. Errors as for
// Create.
func (h *Handler) Rotate(ctx context.Context, call *Call, id events.KeyID, c *Rotate) (done Done, err error) {
	defer h.observe(ctx, call, "rotate", h.cfg.Now(), &done, &err)
	var successor events.Key
	var secret events.Secret
	old, err := h.change(ctx, call, id, func(b *batch, agg events.Aggregate, k *events.Key, r *Rules) (events.Key, error) {
		var hint string
		if t, ok := r.Definition.Type(k.KeyType); ok {
			var err error
			if secret, err = NewSecret(t, h.cfg.Rand); err != nil {
				return *k, err
			}
			hint = t.Hint(secret.Reveal())
		}
		next, err := h.newKeyID(&Call{}, "", "")
		if err != nil {
			return *k, err
		}
		created, rotated, err := c.Decide(k, r, b.now, next, secret.Digest(), hint)
		if err != nil {
			return *k, err
		}
		// The successor comes first: whoever reads that the key is rotated can look
		// its successor up.
		if successor, err = b.key(events.KeyAggregate(k.Keyspace, k.Tenant, next), new(events.Key), created); err != nil {
			return *k, err
		}
		return b.key(agg, k, rotated)
	})
	if err != nil {
		return done, err
	}
	if !old.Replayed {
		return Done{Key: successor, Secret: secret, Seq: old.Seq}, nil
	}
	history, err := h.cfg.Log.Load(ctx, events.KeyAggregate(old.Key.Keyspace, old.Key.Tenant, old.Key.RotatedTo))
	if err != nil {
		return done, err
	}
	successor, err = events.FoldKey(history)
	return Done{Key: successor, Seq: old.Seq, Replayed: true}, err
}

// change is what all commands on one key have in common: find it, see whether
// the caller may, decide, and see whether the caller may what comes of it.
func (h *Handler) change(ctx context.Context, call *Call, id events.KeyID, decide func(*batch, events.Aggregate, *events.Key, *Rules) (events.Key, error)) (Done, error) {
	if err := h.catchUp(ctx); err != nil {
		return Done{}, err
	}
	ref, ok := h.cfg.Dir.Ref(id)
	if !ok {
		return Done{}, noKey(id)
	}
	agg := ref.Aggregate()
	p := &call.Principal
	own := p.Actor == events.Actor{Kind: events.ActorKey, ID: id.String()}
	out, err := run(ctx, h, call, task[events.Key]{
		aggregate: agg,
		fold:      events.FoldKey,
		guard: func(k *events.Key) error {
			if !k.Exists() || !sees(p, k) {
				return noKey(id)
			}
			return nil
		},
		decide: func(b *batch, k *events.Key) (events.Key, error) {
			r, err := h.rulesOf(ref.Keyspace, ref.Tenant)
			if err != nil {
				return *k, err
			}
			touch := mayTouch(p, r, k)
			if touch != nil && !own {
				return *k, touch
			}
			after, err := decide(b, agg, k, r)
			if err != nil {
				return *k, err
			}
			if touch == nil {
				touch = mayTouch(p, r, &after)
			}
			if touch != nil && !b.onlyStops() {
				return *k, touch
			}
			return after, nil
		},
	})
	return Done{Key: out.state, Seq: out.seq, Replayed: out.replayed}, err
}

func noKey(id events.KeyID) error { return refuse(CodeNotFound, "", "there is no key %s", id) }

// DefineKeyspace makes a keyspace or replaces its definition. Errors as for
// Create.
func (h *Handler) DefineKeyspace(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace) (ks events.Keyspace, done Done, err error) {
	defer h.observe(ctx, call, "define_keyspace", h.cfg.Now(), &done, &err)
	if id.Validate() != nil {
		_, err := c.Decide(new(events.Keyspace), id)
		return ks, done, err
	}
	if id != events.Builtin && !call.Principal.Reaches(id, events.NoTenant) {
		return ks, done, refuse(CodeBeyondOwnPower, "", "keyspace %q as a whole is out of the reach of your own key", id)
	}
	agg := events.KeyspaceAggregate(id)
	out, err := run(ctx, h, call, task[events.Keyspace]{
		aggregate: agg,
		fold:      foldKeyspace,
		decide: func(b *batch, ks *events.Keyspace) (events.Keyspace, error) {
			data, err := c.Decide(ks, id)
			if err != nil || data == nil {
				return *ks, err
			}
			rec, err := b.add(agg, ks.Chain, ks.UpdatedAt, data)
			if err != nil {
				return *ks, err
			}
			return ks.Next(&rec)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
}

// RoleRef names a role.
type RoleRef struct {
	Keyspace events.KeyspaceID
	Tenant   events.TenantID
	Role     events.RoleID
}

// DefineRole makes a role or replaces it. Errors as for Create.
func (h *Handler) DefineRole(ctx context.Context, call *Call, ref RoleRef, c *DefineRole) (role events.Role, done Done, err error) {
	defer h.observe(ctx, call, "define_role", h.cfg.Now(), &done, &err)
	return h.role(ctx, call, ref, func(role *events.Role, r *Rules) (events.Data, error) {
		data, err := c.Decide(role, r, ref.Role)
		if err != nil || data == nil {
			return nil, err
		}
		return data, nil
	})
}

// DeleteRole ends a role. Errors as for Create.
func (h *Handler) DeleteRole(ctx context.Context, call *Call, ref RoleRef, c *DeleteRole) (role events.Role, done Done, err error) {
	defer h.observe(ctx, call, "delete_role", h.cfg.Now(), &done, &err)
	return h.role(ctx, call, ref, func(role *events.Role, _ *Rules) (events.Data, error) {
		data, err := c.Decide(role)
		if err != nil {
			return nil, err
		}
		return data, nil
	})
}

func (h *Handler) role(ctx context.Context, call *Call, ref RoleRef, decide func(*events.Role, *Rules) (events.Data, error)) (events.Role, Done, error) {
	if err := h.catchUp(ctx); err != nil {
		return events.Role{}, Done{}, err
	}
	p := &call.Principal
	r, err := h.rules(p, ref.Keyspace, ref.Tenant)
	if err != nil {
		return events.Role{}, Done{}, err
	}
	if ref.Tenant.Validate() != nil || ref.Role.Validate() != nil {
		if _, err := decide(new(events.Role), r); err != nil {
			return events.Role{}, Done{}, err
		}
	}
	if !seesRoles(p, ref.Keyspace, ref.Tenant) {
		return events.Role{}, Done{}, refuse(CodeBeyondOwnPower, "", "tenant %q of keyspace %q is out of the reach of your own key", ref.Tenant, ref.Keyspace)
	}
	agg := events.RoleAggregate(ref.Keyspace, ref.Tenant, ref.Role)
	out, err := run(ctx, h, call, task[events.Role]{
		aggregate: agg,
		fold:      foldRole,
		decide: func(b *batch, role *events.Role) (events.Role, error) {
			r, err := h.rulesOf(ref.Keyspace, ref.Tenant)
			if err != nil {
				return *role, err
			}
			if err := mayTouchRole(p, r, role); err != nil {
				return *role, err
			}
			data, err := decide(role, r)
			if err != nil || data == nil {
				return *role, err
			}
			rec, err := b.add(agg, role.Chain, role.UpdatedAt, data)
			if err != nil {
				return *role, err
			}
			after, err := role.Next(&rec)
			if err != nil {
				return *role, err
			}
			return after, mayTouchRole(p, r, &after)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
}

// task is one command on one aggregate whose events fold into an S.
type task[S any] struct {
	aggregate events.Aggregate
	fold      func([]events.Recorded) (S, error)
	guard     func(*S) error // nil, or why the caller may not know of it; may be nil itself
	decide    func(*batch, *S) (S, error)
}

type outcome[S any] struct {
	state    S
	seq      events.Seq
	replayed bool
}

// run is the loop of every command: load, answer a replay, decide, append, and
// again when the history has moved on. The caller has caught up (C3).
func run[S any](ctx context.Context, h *Handler, call *Call, t task[S]) (out outcome[S], err error) {
	for range maxTries {
		history, err := h.cfg.Log.Load(ctx, t.aggregate)
		if err != nil {
			return out, err
		}
		state, err := t.fold(history)
		if err != nil {
			return out, err
		}
		if t.guard != nil {
			if err := t.guard(&state); err != nil {
				return out, err
			}
		}
		if r, err := replayed(history, call.Command); err != nil {
			return out, err
		} else if r != nil {
			return outcome[S]{state, r.Seq, true}, nil
		}
		b := h.batch(call)
		after, err := t.decide(b, &state)
		if err != nil {
			return out, err
		}
		if len(b.writes) == 0 {
			var seq events.Seq
			if n := len(history); n > 0 {
				seq = history[n-1].Seq
			}
			return outcome[S]{state, seq, false}, nil
		}
		seq, err := store(ctx, h.cfg.Log, b.writes)
		if err == nil {
			h.applied(ctx, seq)
			return outcome[S]{after, seq, false}, nil
		}
		if !errors.Is(err, events.ErrConflict) {
			return out, err
		}
		if err := h.catchUp(ctx); err != nil {
			return out, err
		}
	}
	return out, fmt.Errorf("decided %d times: %w", maxTries, events.ErrConflict)
}

func foldKeyspace(history []events.Recorded) (ks events.Keyspace, err error) {
	for i := range history {
		if ks, err = ks.Next(&history[i]); err != nil {
			return ks, err
		}
	}
	return ks, nil
}

func foldRole(history []events.Recorded) (role events.Role, err error) {
	for i := range history {
		if role, err = role.Next(&history[i]); err != nil {
			return role, err
		}
	}
	return role, nil
}

// batch returns an empty batch whose events carry the call's envelope.
func (h *Handler) batch(call *Call) *batch {
	p := &call.Principal
	now := events.At(h.cfg.Now())
	return &batch{now: now, seal: func(e *events.Event) error {
		id, err := h.ulid(now)
		e.ID = events.EventID(id)
		e.Source = h.source
		e.Command = call.Command
		e.Actor = p.Actor
		e.IP = p.IP.Unmap().WithZone("")
		e.UserAgent = plain(p.UserAgent, 256)
		e.RequestID = plain(p.RequestID, 64)
		e.Reason = call.Reason
		return err
	}}
}

func (h *Handler) ulid(now events.Time) (ulid.ULID, error) {
	id, err := ulid.New(uint64(now), h.cfg.Rand)
	if err != nil {
		return id, fmt.Errorf("draw an id: %w", err)
	}
	return id, nil
}

// newKeyID returns the id of the key that the call makes: derived from the
// command when it has an id, else drawn.
func (h *Handler) newKeyID(call *Call, ks events.KeyspaceID, tenant events.TenantID) (events.KeyID, error) {
	if call.Command != "" {
		return derivedKey(call.Command, ks, tenant), nil
	}
	id, err := h.ulid(events.At(h.cfg.Now()))
	return events.KeyID(id), err
}

// plain makes what a client says of itself fit to be recorded: text without
// control characters, cut to max characters.
func plain(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if r := []rune(s); len(r) > max {
		return string(r[:max])
	}
	return s
}

// catchUp waits until this node's view holds everything that the log held when
// it was called (C3).
func (h *Handler) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpBudget)
	defer cancel()
	last, err := h.cfg.Log.Last(ctx)
	if err != nil {
		return err
	}
	if err := h.cfg.Dir.Wait(ctx, last); err != nil {
		return fmt.Errorf("%w: this node's view stands at %d of %d: %w", events.ErrUnavailable, h.cfg.Dir.At(), last, err)
	}
	return nil
}

// applied waits a little for this node's view to hold what was just written, so
// that a list read next shows it. It does not have to: the position says when.
func (h *Handler) applied(ctx context.Context, seq events.Seq) {
	ctx, cancel := context.WithTimeout(ctx, applyBudget)
	defer cancel()
	_ = h.cfg.Dir.Wait(ctx, seq) // the write is durable either way
}

// rules returns the rules of a keyspace and tenant that the principal may know of.
func (h *Handler) rules(p *events.Principal, ks events.KeyspaceID, tenant events.TenantID) (*Rules, error) {
	if !seesKeyspace(p, ks) {
		return nil, noKeyspace(ks)
	}
	return h.rulesOf(ks, tenant)
}

func (h *Handler) rulesOf(ks events.KeyspaceID, tenant events.TenantID) (*Rules, error) {
	space, ok := h.cfg.Dir.Keyspace(ks)
	if !ok {
		return nil, noKeyspace(ks)
	}
	roles := func(id events.RoleID) (events.Role, bool) { return h.cfg.Dir.Role(ks, tenant, id) }
	return &Rules{Keyspace: ks, Tenant: tenant, Definition: &space.Definition, Roles: roles}, nil
}

func noKeyspace(ks events.KeyspaceID) error {
	return refuse(CodeNotFound, "", "there is no keyspace %q", clip(string(ks)))
}

// holder returns the active or disabled key of the tenant that has the name.
func (h *Handler) holder(ks events.KeyspaceID, tenant events.TenantID, name string, now events.Time) events.KeyID {
	q := projections.ListQuery{Keyspace: ks, Tenant: tenant, Name: name, Limit: pageMax, Now: now}
	for {
		keys, next := h.cfg.Dir.List(q)
		for i := range keys {
			s := keys[i].StatusAt(now)
			if keys[i].Label.Name == name && (s == events.StatusActive || s == events.StatusDisabled) {
				return keys[i].ID
			}
		}
		if next == 0 {
			return events.KeyID{}
		}
		q.After = next
	}
}

// otherAdmin reports whether a key besides id can administer all of Keytrail.
func (h *Handler) otherAdmin(id events.KeyID, now events.Time) bool {
	q := projections.ListQuery{Keyspace: events.Builtin, Status: events.StatusActive, Limit: pageMax, Now: now}
	for {
		keys, next := h.cfg.Dir.List(q)
		for i := range keys {
			if keys[i].ID != id && administers(&keys[i], now) {
				return true
			}
		}
		if next == 0 {
			return false
		}
		q.After = next
	}
}
