package commands

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"time"

	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// Config is what a Handler works with.
type Config struct {
	Log      events.Log             // required
	Leases   events.Leases          // required: no command is acknowledged before the floor holds it
	Nodes    *receipts.Observer     // default one on Leases, of which somebody else lets Run go on
	Receipts *receipts.Issuer       // default one on Nodes that asks nobody and signs nothing
	Dir      *projections.Directory // required; somebody else lets it follow Log
	Now      func() time.Time       // default time.Now
	Rand     io.Reader              // default crypto/rand; safe for concurrent use
	Node     events.NodeID          // names this process in the events' source
	Logger   *slog.Logger           // default slog.Default

	// WriteRelease is the release whose events are written once every process has it
	// (RunRelease). Default the one of this program; none newer is possible.
	WriteRelease events.Release

	// Confirm returns a floor that was proved after it was called, as
	// verifier.Node.Confirm does: every command that was acknowledged before is among
	// its Size events. Required. Answers and refusals rest on it.
	Confirm func(context.Context) (events.Floor, error)

	// LastUsed tells when keys were last used, for reading answers; best effort.
	// nil: never known.
	LastUsed func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error)

	// Recording returns nil, or why no floor can be raised now: a command is not begun
	// then, since it could not be acknowledged. Optional.
	Recording func() error
	// Reserved returns nil, or why the log takes only what takes power away: it is
	// nearly full. The error is answered as the log's own. nil: it takes all.
	Reserved func() error

	// Walk writes down that someone is about to read a key's history: reading the
	// record is itself on the record, once for all pages of a walk. The sequence is 0
	// for the first page, and for a later one what the page before it returned. When it
	// fails nothing is read. nil: it is not written down.
	Walk func(context.Context, *events.Principal, events.Seq, *events.AuditQueried) (events.Seq, error)
}

// Handler carries out commands. It is safe for concurrent use and any number of
// them may work on one log.
type Handler struct {
	cfg     Config
	source  string
	names   names
	imports chan struct{} // one for each import that the log works on
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
	if cfg.Nodes == nil {
		cfg.Nodes = receipts.NewObserver(cfg.Leases, cfg.Logger)
	}
	if cfg.WriteRelease == "" || events.ThisRelease().Before(cfg.WriteRelease) {
		cfg.WriteRelease = events.ThisRelease()
	}
	if cfg.Receipts == nil {
		cfg.Receipts = receipts.NewIssuer(receipts.IssuerConfig{Nodes: cfg.Nodes, Leases: cfg.Leases, Control: cfg.Node, Now: cfg.Now, Logger: cfg.Logger})
	}
	return &Handler{cfg: cfg, source: "/keytrail/control/" + string(cfg.Node), imports: make(chan struct{}, importsAtOnce), metrics: newMetrics()}
}

// Call is what comes with a command: who asks, why, and under which command id.
type Call struct {
	Principal events.Principal
	Reason    string // the events' reason; the command has checked it
	Command   string // CommandID, "" without an idempotency key

	// If is what the resource's present revision must be; a replay of a command
	// that was carried out is answered all the same.
	If Precondition
}

// Done is the outcome of a command on a key.
type Done struct {
	Key      events.Key
	Secret   events.Secret // of a key that was made just now; zero otherwise (C4)
	Seq      events.Seq    // where the command's events are; the key's last event when it changed nothing
	Replayed bool          // the command had been carried out before
}

// Change is a command on one existing key. Decide is pure (C1): the events, none
// when all is as asked, or input.FieldErrors, or a *Refusal.
type Change interface {
	Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error)
}

// Create makes a key in the keyspace. Errors: input.FieldErrors, *Refusal, and
// the classes of events.Log.
func (h *Handler) Create(ctx context.Context, call *Call, ks events.KeyspaceID, c *Create) (done Done, err error) {
	defer h.observe(ctx, call, "create", h.cfg.Now(), &done, &err)
	release, err := h.names.take(ctx, name{ks, c.Tenant, c.Name})
	if err != nil {
		return done, err
	}
	defer release()
	id, err := h.newKeyID(call, ks, c.Tenant)
	if err != nil {
		return done, err
	}
	agg := events.KeyAggregate(ks, c.Tenant, id)
	var secret events.Secret
	out, err := run(ctx, h, call, task[events.Key]{
		scope:     events.ScopeKeysWrite,
		aggregate: agg,
		fold:      events.FoldKey,
		decide: func(own *power, b *batch, k *events.Key) (events.Key, error) {
			r, err := h.rules(ks, c.Tenant)
			if err != nil {
				return *k, err
			}
			// The same command on another node may have made this very key since the
			// load; then the append conflicts and the history answers.
			if holder := h.holder(&own.Principal, ks, c.Tenant, c.Name, b.now); holder != id {
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
			// The role comes first: whoever reads that the key holds it can look it up.
			if role := c.Role(); role != nil {
				if _, err := b.role(events.RoleAggregate(ks, c.Tenant, dedicated(id)), new(events.Role), role); err != nil {
					return *k, err
				}
			}
			return b.key(agg, k, data)
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
	decide := func(own *power, b *batch, agg events.Aggregate, k *events.Key, r *Rules) (events.Key, error) {
		if p, ok := c.(*Patch); ok && p.Name != nil {
			r.NameHolder = h.holder(&own.Principal, k.Keyspace, k.Tenant, *p.Name, b.now)
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
		return after, nil
	}
	if p, ok := c.(*Patch); ok && p.Name != nil {
		ref, err := h.find(ctx, id)
		if err != nil {
			return done, err
		}
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
	old, err := h.change(ctx, call, id, func(_ *power, b *batch, agg events.Aggregate, k *events.Key, r *Rules) (events.Key, error) {
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

// change is what all commands on one key have in common.
func (h *Handler) change(ctx context.Context, call *Call, id events.KeyID, decide func(*power, *batch, events.Aggregate, *events.Key, *Rules) (events.Key, error)) (Done, error) {
	ref, err := h.find(ctx, id)
	if err != nil {
		return Done{}, err
	}
	agg := ref.Aggregate()
	out, err := run(ctx, h, call, task[events.Key]{
		scope:     events.ScopeKeysWrite,
		aggregate: agg,
		existing:  true,
		fold:      events.FoldKey,
		decide: func(own *power, b *batch, k *events.Key) (events.Key, error) {
			r, err := h.rules(ref.Keyspace, ref.Tenant)
			if err != nil {
				return *k, err
			}
			return decide(own, b, agg, k, r)
		},
	})
	return Done{Key: out.state, Seq: out.seq, Replayed: out.replayed}, err
}

// find returns where the key's history is. A key that the view does not hold may
// have been created on another node just now.
func (h *Handler) find(ctx context.Context, id events.KeyID) (events.KeyRef, error) {
	if ref, ok := h.cfg.Dir.Ref(id); ok {
		return ref, nil
	}
	if _, err := h.catchUp(ctx); err != nil {
		return events.KeyRef{}, err
	}
	if ref, ok := h.cfg.Dir.Ref(id); ok {
		return ref, nil
	}
	return events.KeyRef{}, noKey(id, false)
}

func noKey(id events.KeyID, hides bool) error { return notFound(hides, "there is no key %s", id) }

// newKeyID returns the id of the key that the call makes: derived from the
// command when it has an id, else drawn.
func (h *Handler) newKeyID(call *Call, ks events.KeyspaceID, tenant events.TenantID) (events.KeyID, error) {
	if call.Command != "" {
		return derivedKey(call.Command, ks, tenant), nil
	}
	id, err := h.ulid(events.At(h.cfg.Now()))
	return events.KeyID(id), err
}
