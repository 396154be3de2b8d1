package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
)

// NewKey is the key that CreateKey asks for. Zero members are left to the keyspace.
type NewKey struct {
	Tenant      string            `json:"tenant"`
	Name        string            `json:"name"` // unique among the tenant's live keys
	Type        string            `json:"type,omitzero"`
	Environment string            `json:"environment,omitzero"`
	Scopes      []string          `json:"scopes,omitempty"`
	Roles       []string          `json:"roles,omitempty"`
	Resources   []events.Resource `json:"resources,omitempty"` // none: the whole tenant
	Allowlist   []string          `json:"allowlist,omitempty"` // none: any address
	ExpiresIn   string            `json:"expires_in,omitzero"` // as 720h, 30d or never
	Limit       *Limit            `json:"limit,omitzero"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Reason      string            `json:"reason,omitzero"`

	// Idempotency is the request's Idempotency-Key: a second request with it and the same
	// members makes no second key. Default a new one for each call.
	Idempotency string `json:"-"`
}

// Limit is a plan of the keyspace, or a rate and a burst.
type Limit struct {
	Plan      string `json:"plan,omitzero"`
	PerMinute int64  `json:"per_minute,omitzero"`
	Burst     int64  `json:"burst,omitzero"`
}

// Key is a key as control shows it.
type Key struct {
	ID          string            `json:"id"`
	Keyspace    string            `json:"keyspace"`
	Tenant      string            `json:"tenant"`
	Name        string            `json:"name"`
	Hint        string            `json:"hint"` // the readable start of the secret
	Type        string            `json:"type"`
	Environment string            `json:"environment"` // "" where the type has none
	Status      string            `json:"status"`      // active, disabled, expired or revoked
	Scopes      []string          `json:"scopes"`      // as granted, without what they imply
	Roles       []string          `json:"roles"`
	Resources   []events.Resource `json:"resources"`
	Allowlist   []string          `json:"allowlist"`
	Limit       *Limit            `json:"limit"`      // nil: the keyspace's default
	ExpiresAt   time.Time         `json:"expires_at"` // zero: never
	Metadata    map[string]string `json:"metadata"`
	CreatedAt   time.Time         `json:"created_at"`
	RevokedAt   time.Time         `json:"revoked_at"` // zero: not revoked
	Rev         uint64            `json:"rev"`        // how many events it has
}

// Created is a new key, with its secret, which no other answer holds.
type Created struct {
	Key
	Secret   events.Secret
	Position string // ask a verifier with it as MinPosition to find the key
}

// ErrSecretLost says that a key was made by an earlier request under the same
// idempotency key, whose answer with the secret did not arrive. Nobody has the secret:
// rotate the key, or revoke it.
var ErrSecretLost = errors.New("the key exists, and the answer with its secret was lost: rotate it, or revoke it")

// CreateKey makes a key in the keyspace. The key is durable on return, and verifiers know
// it within milliseconds. Errors: *Problem; ErrSecretLost, with the key.
func (c *Client) CreateKey(ctx context.Context, keyspace string, k NewKey) (Created, error) {
	var ans struct {
		Data struct {
			Key
			Secret string `json:"key"`
		} `json:"data"`
		Position string `json:"position"`
	}
	if k.Idempotency == "" {
		k.Idempotency = rand.Text()
	}
	h, err := c.do(ctx, http.MethodPost, "/v1/keyspaces/"+url.PathEscape(keyspace)+"/keys", nil, http.Header{IdempotencyHeader: {k.Idempotency}}, &k, &ans)
	made := Created{ans.Data.Key, events.NewSecret(ans.Data.Secret), ans.Position}
	if err == nil && made.Secret.IsZero() && h.Get(ReplayedHeader) == "true" {
		err = fmt.Errorf("key %s: %w", made.ID, ErrSecretLost)
	}
	return made, err
}

// RevokeKey ends a key for ever. code says why, one of the codes that the OpenAPI document
// lists ("" = unspecified); reason is for people. The revocation is durable on return,
// and position is where: a verifier that is asked with it as MinPosition refuses the key.
func (c *Client) RevokeKey(ctx context.Context, id, code, reason string) (position string, err error) {
	var ans struct {
		Position string `json:"position"`
	}
	in := struct {
		Code   string `json:"code,omitzero"`
		Reason string `json:"reason,omitzero"`
	}{code, reason}
	err = c.Do(ctx, http.MethodDelete, "/v1/keys/"+url.PathEscape(id), nil, http.Header{IdempotencyHeader: {rand.Text()}}, &in, &ans)
	return ans.Position, err
}

// Question is what Verify asks: may the bearer of Secret do that. Zero members ask for
// nothing.
type Question struct {
	Secret       events.Secret
	Keyspace     string
	Scope        string
	Resource     events.Resource
	IP           string        // the client's address, as the program sees it
	Scheme       string        // http or https: how the client's request came
	Cost         uint32        // tokens of the limit; 0 counts as 1
	MinPosition  string        // decide at this position of the log or later
	MaxStaleness time.Duration // refuse to decide on an older view
}

// Decision is the answer of a verifier.
type Decision struct {
	Allowed     bool        `json:"allowed"`
	Reason      string      `json:"reason"`
	Status      int         `json:"status"` // to answer to the client
	KeyID       string      `json:"key_id"` // "", like tenant, environment and scopes, of an unknown key
	Tenant      string      `json:"tenant"`
	Environment string      `json:"environment"`
	Scopes      []string    `json:"scopes"`         // all that the key may do
	Limit       *LimitState `json:"limit,omitzero"` // nil when the key is unknown or has none
	RetryAfter  int64       `json:"retry_after"`    // seconds until there are enough tokens
	Detail      string      `json:"detail"`
	Position    string      `json:"position"` // up to where the verifier had applied the log
	UseID       string      `json:"use_id"`   // its number on the record
}

// LimitState is where a limit stands after a decision.
type LimitState struct {
	Limit     int64  `json:"limit"`
	Remaining int64  `json:"remaining"`
	Reset     int64  `json:"reset"` // seconds until it is full
	Scope     string `json:"scope"` // key or tenant: whose it is
}

// Verify asks a verifier. It needs no operator key, and sends none. A denial is a
// decision and no error. The request is never repeated: each decision is a use, and may
// have taken tokens. Errors: *Problem.
func (c *Client) Verify(ctx context.Context, q Question) (d Decision, err error) {
	in := map[string]any{"key": q.Secret.Reveal()}
	put := func(name string, given bool, v any) {
		if given {
			in[name] = v
		}
	}
	put("keyspace", q.Keyspace != "", q.Keyspace)
	put("scope", q.Scope != "", q.Scope)
	put("resource", !q.Resource.IsZero(), q.Resource)
	put("ip", q.IP != "", q.IP)
	put("scheme", q.Scheme != "", q.Scheme)
	put("cost", q.Cost > 0, q.Cost)
	put("min_position", q.MinPosition != "", q.MinPosition)
	put("max_staleness", q.MaxStaleness != 0, q.MaxStaleness.String())
	open := *c
	open.Key = events.Secret{}
	err = open.Do(ctx, http.MethodPost, "/v1/verify", nil, nil, in, &d)
	if p, ok := errors.AsType[*Problem](err); ok {
		p.hide(q.Secret)
	}
	hide(err, q.Secret)
	return d, err
}

// Use is one verification on the record.
type Use struct {
	ID        string           `json:"id"` // <node>/<epoch>/<n>
	Time      time.Time        `json:"time"`
	Keyspace  string           `json:"keyspace"`
	Tenant    string           `json:"tenant"` // "", like KeyID, of an unknown key
	KeyID     string           `json:"key_id"`
	Allowed   bool             `json:"allowed"`
	Reason    string           `json:"reason"`
	Scope     string           `json:"scope"` // what was asked for
	Resource  *events.Resource `json:"resource"`
	IP        string           `json:"ip"`
	Cost      uint32           `json:"cost"`
	Endpoint  string           `json:"endpoint"` // of Keytrail, that an operator called
	RequestID string           `json:"request_id"`
}

// Event is one event on the record.
type Event struct {
	ID       string         `json:"id"`
	Type     string         `json:"type"` // as key.revoked
	Time     time.Time      `json:"time"`
	Keyspace string         `json:"keyspace"`
	Tenant   string         `json:"tenant"`
	Subject  string         `json:"subject"` // <keyspace>/<tenant>/<kind>/<id>
	KeyID    string         `json:"key_id"`
	Rev      uint64         `json:"rev"`
	Seq      uint64         `json:"seq"` // its place in the log
	Actor    events.Actor   `json:"actor"`
	Reason   string         `json:"reason"`
	Data     jsontext.Value `json:"data"` // what the type says
}

// Uses asks the record for verifications, newest first. The filter has the names of the
// endpoint's parameters: keyspace, tenant, key, outcome, reason, ip, scope, node,
// endpoint, request_id, from and to. The question is itself on the record. A pair with an
// error is the last one.
func (c *Client) Uses(ctx context.Context, filter map[string]string) iter.Seq2[Use, error] {
	return pages[Use](ctx, c, "/v1/audit/uses", filter)
}

// Events asks the record for events, as Uses does for uses. The filters are keyspace,
// tenant, key, actor, type, request_id, ip, from and to.
func (c *Client) Events(ctx context.Context, filter map[string]string) iter.Seq2[Event, error] {
	return pages[Event](ctx, c, "/v1/audit/events", filter)
}

// pages walks over a list to its end.
func pages[T any](ctx context.Context, c *Client, path string, filter map[string]string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := url.Values{}
		for name, v := range filter {
			query.Set(name, v)
		}
		for {
			var ans struct {
				Data       []T    `json:"data"`
				NextCursor string `json:"next_cursor"`
			}
			if err := c.Do(ctx, http.MethodGet, path, query, nil, nil, &ans); err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, row := range ans.Data {
				if !yield(row, nil) {
					return
				}
			}
			if ans.NextCursor == "" {
				return
			}
			if ans.NextCursor == query.Get("cursor") {
				var none T
				yield(none, fmt.Errorf("the answer of %s is not what was expected: its next_cursor is that of the page before", c.shown()))
				return
			}
			query.Set("cursor", ans.NextCursor)
		}
	}
}
