package commands

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

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

	// Record writes down that someone is about to read a key's history: reading
	// the record is itself on the record. When it fails nothing is read. nil: it
	// is not written down.
	Record func(context.Context, *events.Principal, events.Data) error
}

// Handler carries out commands. It is safe for concurrent use and any number of
// them may work on one log.
type Handler struct {
	cfg     Config
	source  string
	names   names
	wrote   atomic.Uint64 // the highest sequence that this node was told of by an append
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
			// The same command on another node may have made this very key since the
			// load; then the append conflicts and the history answers.
			if holder := h.holder(&call.Principal, ks, c.Tenant, c.Name, b.now); holder != id {
				r.NameHolder = holder
			}
			r.NewKey = id
			var hint string
			if t, environment, err := c.KeyType(r.Definition); err == nil {
				if secret, err = NewSecret(t, environment, h.cfg.Rand); err != nil {
					return *k, err
				}
				hint = t.Hint(secret.Reveal())
			}
			data, err := c.Decide(r, b.now, secret.Digest(), hint)
			if err != nil {
				return *k, err
			}
			if err := h.addRole(b, &call.Principal, r, c.Role()); err != nil {
				return *k, err
			}
			after, err := b.key(agg, k, data)
			if err != nil {
				return *k, err
			}
			if err := mayTouch(&call.Principal, r, &after); err != nil {
				return after, err
			}
			return after, h.mayGive(&call.Principal, k, &after)
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
			r.NameHolder = h.holder(&call.Principal, k.Keyspace, k.Tenant, *p.Name, b.now)
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
			if secret, err = NewSecret(t, k.Environment, h.cfg.Rand); err != nil {
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
		if err := h.mayGive(&call.Principal, new(events.Key), &successor); err != nil {
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
			return after, h.mayGive(p, k, &after)
		},
	})
	return Done{Key: out.state, Seq: out.seq, Replayed: out.replayed}, err
}

func noKey(id events.KeyID) error { return refuse(CodeNotFound, "", "there is no key %s", id) }

// newKeyID returns the id of the key that the call makes: derived from the
// command when it has an id, else drawn.
func (h *Handler) newKeyID(call *Call, ks events.KeyspaceID, tenant events.TenantID) (events.KeyID, error) {
	if call.Command != "" {
		return derivedKey(call.Command, ks, tenant), nil
	}
	id, err := h.ulid(events.At(h.cfg.Now()))
	return events.KeyID(id), err
}
