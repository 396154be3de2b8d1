package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/schemas/api"
)

// NodeConfig is what a node needs. View, Ledger and Log are required.
type NodeConfig struct {
	View   *projections.Keys
	Ledger *Ledger
	Log    events.LogID // the log that View follows; positions of another are refused

	// TrustedProxies are the networks of the gateways whose X-Forwarded-For and
	// X-Forwarded-Proto are believed. Default none: the client is the peer.
	TrustedProxies []netip.Prefix
	// WaitMax bounds how long a request waits for its min_position, and for its
	// use to be durable in a keyspace with ledger sync. Default 2 s.
	WaitMax time.Duration

	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()
}

// Node is one verifier: the view, its freshness, the ledger and the doors. It is
// safe for concurrent use. It must stand behind View in the same
// projections.Follow, or it never hears of the log and denies everything:
//
//	projections.Follow(ctx, log, view.At(), view, node)
type Node struct {
	cfg     NodeConfig
	started time.Time    // origin of heard
	heard   atomic.Int64 // when the last heartbeat came: nanoseconds after started, plus 1; 0 = none yet
	metrics metrics
}

// NewNode returns a node; it is ready when the log has been heard and Ledger.Run
// has opened an epoch.
func NewNode(cfg NodeConfig) *Node {
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
	n.metrics.init(n)
	return n
}

// Ready reports whether the node can answer: it has caught up with the log,
// heard of it within the default staleness bound, and can record decisions.
func (n *Node) Ready() error {
	switch s := n.Staleness(n.cfg.Now()); {
	case s == never:
		return errors.New("the view has not caught up with the log yet")
	case s > events.Staleness{}.MaxStaleness():
		return fmt.Errorf("the log was last heard of %s ago", s.Round(time.Millisecond))
	}
	return n.cfg.Ledger.Ready()
}

// Decide answers req: freshness, then Verify, then the ledger. It waits only for
// a min_position ahead of the node, and for the ledger of a keyspace in mode sync.
//
// When such a use could not be made durable in time the answer is
// verifier_stale, while the record holds the decision as it was made. When no
// epoch of the ledger is open the answer is verifier_stale without a use. Either
// keeps the tokens it took.
func (n *Node) Decide(ctx context.Context, req *Request) Decision {
	d, _ := n.decide(ctx, req)
	return d
}

// decide is Decide, and the regime that the decision was made under.
func (n *Node) decide(ctx context.Context, req *Request) (Decision, *projections.Regime) {
	reached := n.reach(ctx, req.MinPosition)
	now := n.cfg.Now()
	d, g := decide(n.cfg.View, req, events.At(now), func(g *projections.Regime) bool {
		return !reached || n.stale(req, g.Staleness, now)
	})
	use := record(&d, req)
	var err error
	d.Use, err = n.cfg.Ledger.Append(&use)
	if err == nil && g.Ledger == events.LedgerSync {
		err = n.sync(ctx, d.Use.N)
	}
	if err != nil && (g.Ledger == events.LedgerSync || d.Use.N == 0) {
		d.Reason, d.Limit.RetryAfter = events.ReasonVerifierStale, 0
	}
	d.Status = statusOf(g, d.Reason)
	n.metrics.decisions[d.Reason].Add(1)
	return d, g
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
	if d.Key != nil {
		u.Keyspace, u.Tenant, u.Key = d.Key.Space.ID, d.Key.Tenant, d.Key.ID
	} else if req.Keyspace.Validate() == nil {
		u.Keyspace = req.Keyspace
	}
	if u.Scope != "" && events.ValidScope(u.Scope) != nil {
		u.Scope = ""
	}
	if !u.Resource.IsZero() && u.Resource.Validate() != nil {
		u.Resource = events.Resource{}
	}
	return u
}

var _ api.Authenticator = (*Node)(nil)

// Authenticate tells which key of the built-in keyspace stands at one of
// Keytrail's own doors. It is a decision like any other: it is in the ledger,
// and takes a token of the key's limit. The error is a *api.Problem.
func (n *Node) Authenticate(r *http.Request) (events.Principal, error) {
	var builtin events.Credential
	req := Request{Secret: credential(r.Header.Values(builtin.HeaderName()), builtin), Keyspace: events.Builtin, IP: n.clientIP(r)}
	d := n.Decide(r.Context(), &req)
	if !d.Allowed() {
		return events.Principal{}, problem(&d, &req)
	}
	p := events.Principal{
		Actor:     events.Actor{Kind: events.ActorKey, ID: d.Key.ID.String()},
		Scopes:    d.Key.Scopes(),
		IP:        req.IP,
		UserAgent: api.Plain(r.UserAgent(), 256),
		RequestID: api.RequestID(r),
	}
	for _, res := range d.Key.Resources() {
		switch res.Kind {
		case events.ResourceKeyspace:
			p.Keyspaces = append(p.Keyspaces, events.KeyspaceID(res.ID))
		case events.ResourceTenant:
			p.Tenants = append(p.Tenants, events.TenantID(res.ID))
		}
	}
	return p, nil
}
