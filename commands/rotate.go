package commands

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Rotate gives a key a successor with a new secret and the same power, and ends
// the key itself after an overlap.
type Rotate struct {
	Overlap    *string `json:"overlap,omitzero"` // how long both work, as 24h or 7d; default 0: the old key ends at once
	ExpiryWish         // the successor's; absent = as long a life as the old key was given
	Reason     string  `json:"reason,omitzero"`
}

// Decide returns the successor's creation and the end of the old key, or why
// not. The secret was drawn for the old key's type; only digest and hint come in.
func (c *Rotate) Decide(k *events.Key, r *Rules, now events.Time, successor events.KeyID, digest events.Digest, hint string) (*events.KeyCreated, *events.KeyRotated, error) {
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	var overlap time.Duration
	if c.Overlap != nil {
		var err error
		if overlap, err = keyspace.ParseSpan(*c.Overlap); err != nil {
			f.Add("overlap", "invalid", "want a duration of 0 to 100 years, as 0s, 24h or 7d")
		}
	}
	expires := c.successorExpiry(&f, k, r.Definition.Expiry, now)
	t, ok := r.Definition.Type(k.KeyType)
	if !ok {
		f.Add("type", "unknown_type", "the key's type is no longer defined in the keyspace")
	}
	if ok && k.Environment != t.Environment() && !slices.Contains(t.Environments, k.Environment) {
		f.Add("environment", "unknown_environment", fmt.Sprintf("key type %s no longer has the key's environment %s", input.Quote(t.Name), input.Quote(k.Environment)))
	}
	r.checkGrant(&f, t, k.Grant, k.Resources)
	r.checkHeld(&f, k.Grant)
	r.checkResources(&f, k.Resources)
	r.checkLimit(&f, k.Limit)
	// C6: the overlap never outlives the key's own expiry.
	until := now.Add(overlap)
	if k.ExpiresAt != 0 {
		until = min(until, k.ExpiresAt)
	}
	rotated := &events.KeyRotated{Successor: successor, Before: k.ExpiresAt, After: until}
	if err := admit(k, rotated, now); err != nil {
		return nil, nil, err
	}
	if err := f.OrNil(); err != nil {
		return nil, nil, err
	}
	created := &events.KeyCreated{
		Digest: digest, Hint: hint,
		Name: k.Label.Name, Metadata: k.Label.Metadata,
		KeyType: t.Name, Environment: k.Environment,
		Scopes: k.Grant.Scopes, Roles: k.Grant.Roles, Resources: k.Resources,
		Allowlist: k.Allowlist, Limit: k.Limit,
		ExpiresAt: expires, RotatedFrom: k.ID,
	}
	return created, rotated, nil
}

// successorExpiry is what was asked for, else as long a life as the old key was
// given, shortened to the policy's longest; a key without expiry gets one only
// where the policy wants it. Where there are choices it is the longest of them
// within the old key's life, or the shortest of all.
func (c *Rotate) successorExpiry(f *input.FieldErrors, k *events.Key, p keyspace.ExpiryPolicy, now events.Time) events.Time {
	if c.Given() {
		return c.resolve(f, p, now, now)
	}
	if len(p.Choices) > 0 {
		if life := sameChoice(&p, k); life != keyspace.Never {
			return now.Add(life.Duration())
		}
		return 0
	}
	longest := cmp.Or(p.Longest(), keyspace.MaxSpan)
	if k.ExpiresAt != 0 {
		// In milliseconds: a life until the year 9999 is more than a Duration holds.
		return min(now+k.ExpiresAt-k.CreatedAt, now.Add(longest))
	}
	if !p.MustEnd() {
		return 0
	}
	if p.Default == "" && p.Max != "" {
		return now.Add(longest)
	}
	return c.resolve(f, p, now, now)
}

// sameChoice returns the longest choice that is no longer than the life that k was
// given; where all are longer, the shortest.
func sameChoice(p *keyspace.ExpiryPolicy, k *events.Key) keyspace.Span {
	length := func(c keyspace.Span) int64 {
		if c == keyspace.Never {
			return math.MaxInt64
		}
		return c.Duration().Milliseconds()
	}
	life := int64(math.MaxInt64)
	if k.ExpiresAt != 0 {
		life = int64(k.ExpiresAt - k.CreatedAt)
	}
	best := p.Choices[0]
	for _, c := range p.Choices {
		n, m := length(c), length(best)
		if within := n <= life; within && (n > m || m > life) || !within && n < m {
			best = c
		}
	}
	return best
}
