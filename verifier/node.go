package verifier

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier/limits"
)

// NodeConfig is what a node needs. View, Ledger, Leases and Log are required.
type NodeConfig struct {
	View   *projections.Keys
	Ledger *Ledger
	Leases events.Leases
	Log    events.LogID // the log that View follows

	// StaleCeiling is how old a lease the node answers on at the most, whatever a
	// keyspace says with on_stale: allow; a keyspace with a longer max_staleness
	// raises it. A receipt waits that long for a node that does not answer. Default
	// DefaultStaleCeiling, at most MaxStaleCeiling.
	StaleCeiling time.Duration

	// TrustedProxies are the networks of the gateways whose X-Forwarded-For,
	// X-Forwarded-Proto and Forwarded are believed, and which must send one of
	// them: a client that they do not name has no known address. Default none: the
	// client is the peer.
	TrustedProxies []netip.Prefix
	// WaitMax bounds how long a request waits for its min_position, and for its
	// use to be durable in a keyspace with ledger sync. Default 2 s.
	WaitMax time.Duration

	// LimitMail reaches the allocator of exact limits; RunLimits must run then. nil = it
	// counts as away.
	LimitMail events.LimitMail

	Now    func() time.Time     // default time.Now
	Steady func() time.Duration // a clock that nobody can set; default the monotonic part of Now
	Logger *slog.Logger         // default slog.Default()
}

// Node is one verifier: the view, its lease, the ledger and the endpoints. It is
// safe for concurrent use. It answers while View follows the log, and RunLease and
// Ledger.Run run. It may stand behind View in the same projections.Follow, to tell
// how far the clocks are apart:
//
//	projections.Follow(ctx, log, view, node)
type Node struct {
	cfg     NodeConfig
	started time.Time // origin of the steady clock
	elapsed elapsed
	offset  atomic.Int64 // of this clock to the log's at the last heartbeat: milliseconds
	lease   leaseHolder
	limits  *limits.Client

	awaiting atomic.Int64 // requests in awaitTokens

	metrics metrics
	faults  faultLog
	buckets Buckets
}

// NewNode returns a node; it is ready when RunLease has got a lease and Ledger.Run
// has opened an epoch.
func NewNode(cfg NodeConfig) *Node {
	if cfg.StaleCeiling <= 0 {
		cfg.StaleCeiling = DefaultStaleCeiling
	}
	cfg.StaleCeiling = min(cfg.StaleCeiling, MaxStaleCeiling)
	if cfg.WaitMax <= 0 {
		cfg.WaitMax = 2 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	n := &Node{cfg: cfg, started: cfg.Now()}
	start := n.clocks(n.started)
	n.elapsed.base.Store(&start)
	n.lease.instance = events.NewInstanceID(n.started)
	n.limits = limits.NewClient(n.lease.instance)
	if cfg.LimitMail == nil {
		n.limits.Detach()
	}
	n.lease.grants.Store(new([]grant))
	n.metrics.init(n)
	return n
}

// Ready reports whether the node can answer: it holds a lease within the default
// staleness bound, its view has reached it, and it can record decisions.
func (n *Node) Ready() error {
	if err := n.fresh(); err != nil {
		return err
	}
	return n.cfg.Ledger.Ready()
}

// Decide answers req: freshness, then Verify, then the ledger. It waits only for
// a min_position ahead of the node, for the ledger of a keyspace in mode sync, and
// where limits are exact and the node holds no token of the key's, for one answer of
// their allocator.
//
// When such a use could not be made durable in time the answer is
// verifier_stale, while the record holds the decision as it was made. When no
// epoch of the ledger is open the answer is verifier_stale without a use. Either
// keeps the tokens it took.
func (n *Node) Decide(ctx context.Context, req *Request) Decision {
	ctx, cancel := n.bounded(ctx, req)
	defer cancel()
	j := n.judge(ctx, req)
	n.await(ctx, &j)
	n.settle(&j, req)
	return j.Decision
}

// judgement is a decision on its way into the ledger.
type judgement struct {
	Decision
	rules    *keyspace.Compiled
	recorded error // of Ledger.Append and, after await, of Ledger.Sync: without a number it was never recorded
	basis    basis // for how long it may be told
	reached  bool  // the view has the request's min_position
	foreign  bool  // the request's min_position is of another history: nothing was decided
}

// bounded returns the context for all that a request waits for: its min_position and
// its use together, WaitMax at most.
func (n *Node) bounded(ctx context.Context, req *Request) (context.Context, context.CancelFunc) {
	if req.MinPosition == (events.Position{}) {
		return ctx, func() {} // sync bounds the one wait
	}
	return context.WithTimeout(ctx, n.cfg.WaitMax)
}

// judge decides and numbers the decision. It waits for a min_position only. A request
// with one of another history is decided as verifier_stale, and not numbered.
func (n *Node) judge(ctx context.Context, req *Request) judgement {
	j := n.weigh(ctx, req)
	if !j.foreign {
		n.number(&j, req)
	}
	return j
}

// weigh decides without the ledger.
func (n *Node) weigh(ctx context.Context, req *Request) judgement {
	j := n.consider(ctx, req)
	n.awaitTokens(ctx, &j, req)
	return j
}

// consider decides without the ledger, but for what the allocator of limits is asked for:
// awaitTokens waits for that.
func (n *Node) consider(ctx context.Context, req *Request) judgement {
	reached, foreign := n.reach(ctx, req.MinPosition)
	if req.MaxStaleness > 0 {
		n.freshen(ctx, req.MaxStaleness)
	}
	return n.decideOnce(req, reached, foreign)
}

// decideOnce decides on what the node knows and holds now.
func (n *Node) decideOnce(req *Request, reached, foreign bool) judgement {
	b := n.basis() // before the view is asked
	now := n.cfg.Now()
	j := judgement{recorded: ErrLedgerClosed, basis: b, reached: reached, foreign: foreign}
	j.rules = decide(&j.Decision, n.cfg.View, &n.buckets, req, events.At(now), tokens{n.limits, n.passed(now)}, func(g *keyspace.Compiled) bool {
		return !reached || n.stale(&b, req, g.Staleness, now)
	})
	if j.Limit.until > 0 && n.passed(n.cfg.Now()) >= j.Limit.until {
		// The process was paused before it took the tokens: others may have had them by then.
		return n.decideOnce(req, reached, foreign)
	}
	j.Limit.until = 0
	return j
}

// number appends the decision to the ledger.
func (n *Node) number(j *judgement, req *Request) {
	use := record(&j.Decision, req)
	j.Use, j.recorded = n.cfg.Ledger.Append(&use)
}

// await waits until the use is durable, where the keyspace wants that.
func (n *Node) await(ctx context.Context, j *judgement) {
	if j.recorded == nil && j.rules.Ledger == keyspace.LedgerSync {
		j.recorded = n.sync(ctx, j.Use.N)
	}
}

// settle turns the decision into verifier_stale where its record is not what it
// promises, or where an allowance has grown too old meanwhile: there was something to
// wait for, or the process was paused. It waits for nothing: it comes last, right
// before the answer. req is nil for a decision that was acted on before.
func (n *Node) settle(j *judgement, req *Request) {
	err, recorded := j.recorded, j.Reason
	switch {
	case errors.Is(err, ErrSuppressed):
		err = nil // it stays the refusal that it is
	case j.Use.N == 0:
		recorded = events.ReasonNone
	}
	old := false
	if req != nil && j.Allowed() {
		now := n.cfg.Now()
		// What the view has applied meanwhile may already be on a receipt.
		old = n.stale(&j.basis, req, j.rules.Staleness, now) || n.cfg.View.At() != j.Seq && !holds(n.cfg.View, req, events.At(now))
	}
	if old || err != nil && (j.rules.Ledger == keyspace.LedgerSync || j.Use.N == 0) {
		j.Reason, j.Limit.RetryAfter = events.ReasonVerifierStale, 0
	}
	j.Status = statusOf(j.rules, j.Reason)
	n.metrics.decisions.answered(recorded, j.Reason)
}

func (n *Node) sync(ctx context.Context, use uint64) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.WaitMax)
	defer cancel()
	return n.cfg.Ledger.Sync(ctx, use)
}

// record returns the use that d is on the record. What the caller gave is
// written down only where it follows its grammar.
func record(d *Decision, req *Request) events.Use {
	u := events.Use{Time: d.At, Reason: d.Reason, Scope: req.Scope, Resource: req.Resource,
		IP: req.IP.Unmap().WithZone(""), Cost: req.cost(), Seq: d.Seq}
	if d.Key.Exists() {
		u.Keyspace, u.Tenant, u.Key = d.Key.Space.ID, d.Key.Tenant, d.Key.ID
	} else if req.Keyspace.Validate() == nil {
		u.Keyspace = req.Keyspace
	}
	if u.Scope != "" && keyspace.ValidScope(u.Scope) != nil {
		u.Scope = ""
	}
	if !u.Resource.IsZero() && u.Resource.Validate() != nil {
		u.Resource = events.Resource{}
	}
	if req.Endpoint != "" && events.ValidEndpoint(req.Endpoint) == nil {
		u.Endpoint = req.Endpoint
	}
	if req.RequestID != "" && (u.Endpoint != "" || !u.Reason.Allowed()) {
		u.RequestID, _ = events.ParseRequestID(req.RequestID)
	}
	return u
}

var _ api.Authenticator = (*Node)(nil)

// Knows reports whether the request presents a secret of the built-in keyspace. It
// is no decision: it takes no token and leaves no record.
func (n *Node) Knows(r *http.Request) bool {
	var key projections.Key
	find(n.cfg.View, nil, &Request{Secret: operatorSecret(r), Keyspace: events.Builtin}, &key)
	return key.Exists()
}

// FindSecret implements events.SecretFinder.
func (n *Node) FindSecret(text string) (start, end int, ok bool) { return n.cfg.View.FindSecret(text) }

// operatorSecret returns what the request presents to Keytrail's own endpoints.
func operatorSecret(r *http.Request) events.Secret {
	var builtin keyspace.Credential
	return credential(r.Header.Values(builtin.HeaderName()), builtin)
}

// Authenticate implements api.Authenticator. It is a decision like any other: it
// takes a token of the key's limit, and it is in the ledger, once the outcome of
// the call is known.
func (n *Node) Authenticate(r *http.Request, scope, endpoint string) (*api.Caller, error) {
	ctx := r.Context()
	req := Request{Secret: operatorSecret(r), Keyspace: events.Builtin, Scope: scope, Endpoint: endpoint, RequestID: api.RequestID(r)}
	n.origin(asked(r, ""), &req)
	j := n.weigh(ctx, &req)
	recheck := func(p *events.Principal) func() error {
		return func() error { return n.recheck(&req, p) }
	}
	if j.Allowed() && n.cfg.Ledger.Ready() == nil {
		p := n.principal(r, &j.Decision, &req)
		return api.NewCaller(p, recheck(&p), func(outcome events.Reason) {
			j.Reason = outcome
			n.number(&j, &req)
			n.await(ctx, &j)
			if n.settle(&j, nil); j.Use.N == 0 {
				n.cfg.Logger.ErrorContext(ctx, "an operator's call is not on the record: the ledger closed while it ran",
					"key_id", j.Key.ID, "endpoint", endpoint, "request_id", req.RequestID)
			}
		}), nil
	}
	n.number(&j, &req)
	n.await(ctx, &j)
	n.settle(&j, &req)
	switch {
	case j.Allowed(): // the ledger has opened just now
		p := n.principal(r, &j.Decision, &req)
		return api.NewCaller(p, recheck(&p), nil), nil
	case j.Reason == events.ReasonScopeMissing:
		return api.NewCaller(n.principal(r, &j.Decision, &req), nil, nil), api.ScopeMissing(scope)
	}
	return new(api.Caller), problem(&j.Decision, &req)
}

// principal returns the bearer of the key that was decided about.
func (n *Node) principal(r *http.Request, d *Decision, req *Request) events.Principal {
	p := events.Principal{
		Actor:     events.Actor{Kind: events.ActorKey, ID: d.Key.ID.String()},
		Scopes:    d.Key.Scopes(),
		IP:        req.IP,
		UserAgent: api.Plain(events.WithoutSecrets(n, api.Plain(r.UserAgent(), 256+events.MaxSecret)), 256),
		RequestID: req.RequestID,
	}
	p.Restrict(d.Key.Resources())
	return p
}
