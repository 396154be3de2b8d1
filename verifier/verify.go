package verifier

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// Request is one question: may the bearer of this secret do that.
type Request struct {
	Secret   events.Secret
	Keyspace events.KeyspaceID // "" = whichever the key belongs to
	Scope    string            // "" = none needed
	Resource events.Resource   // zero = none in particular
	IP       netip.Addr        // the client's address; invalid = not known
	Cost     uint32            // tokens of the limit; 0 counts as 1

	MinPosition  events.Position // decide at this position of the log or later; zero = wherever the node is
	MaxStaleness time.Duration   // refuse to decide on an older view than this; 0 = as the keyspace says
}

func (r *Request) cost() uint32 { return max(r.Cost, 1) }

// Decision is the answer, and what it was made of.
type Decision struct {
	Reason events.Reason
	Status int              // the HTTP status that fits the reason
	Key    *projections.Key // the key presented; nil when it is unknown in the keyspace named
	At     events.Time      // when it was decided
	Seq    events.Seq       // the position in the log at which it was decided
	Limit  Limit            // of a request that got as far as the limit; zero otherwise
	Use    events.UseID     // its place in the ledger; zero outside a Node
}

// Allowed reports whether the decision was to allow.
func (d *Decision) Allowed() bool { return d.Reason.Allowed() }

// Verify decides req on the view as it stands, at the instant now. It is pure
// but for the key's bucket, from which an otherwise allowed request takes its
// tokens (V1, V3). Freshness is not its business: see Node.Decide.
func Verify(view *projections.Keys, req *Request, now events.Time) Decision {
	d := Decision{At: now, Seq: view.At()}
	if d.Key, d.Reason = find(view, req); d.Key != nil {
		d.Reason, d.Limit = check(d.Key, req, now)
	}
	d.Status = statusOf(d.Reason)
	return d
}

// find returns the key presented, or nil and why there is none. The position
// must be read before: the view publishes it after the data.
func find(view *projections.Keys, req *Request) (*projections.Key, events.Reason) {
	secret := req.Secret.Reveal()
	if secret == "" {
		return nil, events.ReasonKeyMissing
	}
	if !WellFormed(secret) {
		return nil, events.ReasonKeyMalformed
	}
	key := view.Lookup(req.Secret.Digest())
	if key != nil && (req.Keyspace == "" || key.Space.ID == req.Keyspace) {
		return key, events.ReasonNone
	}
	if ks := view.Keyspace(req.Keyspace); ks != nil {
		if _, ok := ks.Definition().TypeOf(secret); !ok {
			return nil, events.ReasonKeyMalformed
		}
	}
	return nil, events.ReasonKeyUnknown
}

// check is the order of checks from the key's own state on.
func check(key *projections.Key, req *Request, now events.Time) (reason events.Reason, limit Limit) {
	switch key.StatusAt(now) {
	case events.StatusActive:
	case events.StatusExpired:
		return events.ReasonKeyExpired, limit
	case events.StatusDisabled:
		return events.ReasonKeyDisabled, limit
	default:
		return events.ReasonKeyRevoked, limit
	}
	perMinute, burst, limited := key.Limit()
	var bucket *projections.Bucket
	var seen int64
	if limited { // looked at early, so that its memory arrives while the checks run: a tenth of all
		bucket = key.Bucket()
		seen = bucket.At.Load()
	}
	switch {
	case !key.AllowsAddr(req.IP):
		return events.ReasonAddressNotAllowed, limit
	case req.Scope != "" && !key.HasScope(req.Scope):
		return events.ReasonScopeMissing, limit
	case !key.AllowsResource(req.Resource):
		return events.ReasonResourceNotAllowed, limit
	}
	if !limited {
		return events.ReasonOK, limit
	}
	limit, ok := take(bucket, seen, now, perMinute, burst, int64(req.cost()))
	if !ok {
		return events.ReasonRateLimited, limit
	}
	return events.ReasonOK, limit
}

// The length of any secret. Key types of our own are 21 characters or more.
const (
	minSecret = 16
	maxSecret = 256
)

// WellFormed reports whether s can be a secret at all: visible ASCII.
func WellFormed(s string) bool {
	if len(s) < minSecret || len(s) > maxSecret {
		return false
	}
	for i := range len(s) {
		if s[i]-'!' > '~'-'!' {
			return false
		}
	}
	return true
}

func statusOf(r events.Reason) int {
	switch r {
	case events.ReasonOK:
		return http.StatusOK
	case events.ReasonKeyMissing, events.ReasonKeyMalformed, events.ReasonKeyUnknown,
		events.ReasonKeyRevoked, events.ReasonKeyExpired, events.ReasonKeyDisabled:
		return http.StatusUnauthorized
	case events.ReasonAddressNotAllowed, events.ReasonScopeMissing, events.ReasonResourceNotAllowed:
		return http.StatusForbidden
	case events.ReasonRateLimited:
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}
