package verifier

import (
	"context"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier/limits"
)

// tokens is what the node holds of limits that are exact, at one moment. Without a client
// every limit is the caller's own.
type tokens struct {
	client *limits.Client
	passed time.Duration // Node.passed
}

// exactMeters are the limits of one request that hold for all nodes together.
type exactMeters struct {
	tokens
	key, tenant limits.Limit // their Burst 0 = no limit
	local       bool         // each node counts by itself while the allocator is away
}

// find finds the limits, and reports whether they are exact.
func (m *exactMeters) find(g *keyspace.Compiled, key *projections.Key) bool {
	if m.client == nil || !g.Limits.Exact() {
		return false
	}
	var ok bool
	m.local = g.Limits == keyspace.LimitsExactElseLocal
	m.key.ID = limits.ID{Key: key.ID}
	if m.key.PerMinute, m.key.Burst, ok = key.Limit(g); !ok {
		m.key = limits.Limit{}
	}
	m.tenant.ID = limits.ID{Keyspace: key.Space.ID, Tenant: key.Tenant}
	if m.tenant.PerMinute, m.tenant.Burst, ok = key.Whole.Limit(g); !ok {
		m.tenant = limits.Limit{}
	}
	return true
}

// take is meters.take. ok is also false while the allocator is asked: Limit.told is set then.
func (m *exactMeters) take(cost int64) (l Limit, ok bool) {
	key, tenant := &m.key, &m.tenant
	if key.PerMinute == 0 {
		key = nil
	}
	if tenant.PerMinute == 0 {
		tenant = nil
	}
	if key == nil && tenant == nil {
		return l, true
	}
	s, ofTenant, outcome := m.client.Take(key, tenant, m.passed, cost, m.local)
	l = Limit{Limit: s.Burst, Remaining: s.Remaining, Reset: s.Reset, RetryAfter: s.RetryAfter, Scope: ScopeKey, Mode: keyspace.LimitsExact,
		Away: outcome == limits.Away, told: s.Told, until: s.Until}
	if ofTenant {
		l.Scope = ScopeTenant
	}
	if s.Local {
		l.Mode = keyspace.LimitsLocal
	}
	return l, outcome == limits.Allowed
}

// askFor is how long a request waits at most for tokens that the node does not hold, and
// maxAwaiting how many requests wait at once: more are refused at once.
const (
	askFor      = 2 * limits.AnswerWait
	maxAwaiting = 4096
)

// awaitTokens decides again at each answer of the allocator until it has said whether there
// are tokens for the request. It only waits while the decision does.
func (n *Node) awaitTokens(ctx context.Context, j *judgement, req *Request) {
	if j.Limit.told == nil {
		return
	}
	defer n.awaiting.Add(-1)
	if n.awaiting.Add(1) > maxAwaiting {
		n.limits.TurnedAway()
		j.Limit.told, j.Limit.Away, j.Limit.crowded = nil, true, true
		return
	}
	n.limits.Waited()
	ctx, cancel := context.WithTimeout(ctx, min(askFor, n.cfg.WaitMax))
	defer cancel()
	for j.Limit.told != nil {
		select {
		case <-j.Limit.told:
			*j = n.decideOnce(req, j.reached, j.foreign)
		case <-ctx.Done():
			j.Limit.told, j.Limit.Away = nil, true
		}
	}
}

// RunLimits holds leases of tokens for keyspaces whose limits are exact, until ctx ends,
// and gives them back. It returns ctx's error, or why it cannot hear the allocator; at once
// and nil without NodeConfig.LimitMail. The process must stop serving before it ends ctx.
func (n *Node) RunLimits(ctx context.Context) error {
	if n.cfg.LimitMail == nil {
		return nil
	}
	return n.limits.Run(ctx, n.cfg.Ledger.cfg.Node, n.cfg.LimitMail, n.mark)
}

// LimitService returns what leases the tokens of exact limits beside this node, when it is
// appointed: cfg with its Node, Instance, Confirm, Mail, Steady, Passed and Logger set.
func (n *Node) LimitService(cfg limits.ServiceConfig) *limits.Service {
	cfg.Node, cfg.Instance, cfg.Confirm, cfg.Mail, cfg.Logger = n.cfg.Ledger.cfg.Node, events.NewInstanceID(n.started), n.Confirm, n.cfg.LimitMail, n.cfg.Logger
	cfg.Steady = func() time.Duration { return n.clocks(n.cfg.Now()).steady }
	cfg.Passed = n.mark
	return limits.NewService(cfg)
}

// mark is passed at a mark: what is measured from it is never measured too short.
func (n *Node) mark() time.Duration { return n.elapsed.mark(n.clocks(n.cfg.Now())) }
