package verifier

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/seam"
	"github.com/keytrail/keytrail/projections"
)

// recheck returns nil while the bearer of the key may still do what granted says, by
// the newest state of the view, and else the *api.Problem that it would be answered
// now. It takes no token and leaves no record: it is for an answer that streams.
func (n *Node) recheck(req *Request, granted *events.Principal) error {
	b := n.basis() // before the view is asked
	now := n.cfg.Now()
	d := Decision{At: events.At(now)}
	var g *keyspace.Compiled
	for {
		version := n.cfg.View.Version()
		seam.At()
		g, d.Reason = find(n.cfg.View, nil, req, &d.Key)
		switch key := &d.Key; {
		case n.stale(&b, req, g.Staleness, now):
			d.Reason = events.ReasonVerifierStale
		case key.Exists():
			held := events.Principal{Scopes: key.Scopes()}
			held.Restrict(key.Resources())
			d.Reason = state(key, d.At)
			switch {
			case d.Reason != events.ReasonOK:
			case !key.AllowsAddr(req.addr()):
				d.Reason = events.ReasonAddressNotAllowed
			case req.Scope != "" && !key.HasScope(req.Scope):
				d.Reason = events.ReasonScopeMissing
			case !held.Contains(&events.Principal{Keyspaces: granted.Keyspaces, Tenants: granted.Tenants}):
				d.Reason = events.ReasonResourceNotAllowed
			}
		}
		if n.cfg.View.Still(version, &d.Key) {
			break
		}
		d.Key = projections.Key{}
	}
	if d.Reason == events.ReasonOK {
		return nil
	}
	d.Status = statusOf(g, d.Reason)
	return problem(&d, req)
}
