package verifier

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// A fault is what a question shows to be wrong with the configuration of a
// gateway, or of an application at /v1/verify. No fault lets a request through.
// Clients cannot mend it, so it is told to the operator: by a metric, by a line in
// the log, and by `keytrail doctor`.
type fault uint8

const (
	faultMalformed fault = iota // the question does not follow its grammar
	faultKeyspace               // it names a keyspace that is not defined
	faultScope                  // a scope that the keyspace does not declare
	faultKind                   // a kind of resource that the keyspace does not declare
	faultAddress                // a trusted proxy does not tell the client's address, or tells two
	faults
)

var faultNames = [faults]string{"malformed", "keyspace", "scope", "resource_kind", "client_address"}

// String returns the fault as metrics and the log name it.
func (f fault) String() string { return faultNames[f] }

// codeMisconfigured is of refusals that only the operator can mend.
const codeMisconfigured = "gateway_misconfigured"

// faultPause is how long a fault stays out of the log after a line about it.
const faultPause = 10 * time.Second

// faultLog counts faults and limits what is logged of them.
type faultLog [faults]struct {
	seen   atomic.Uint64
	last   atomic.Int64  // Unix milliseconds; 0 = never
	logged atomic.Int64  // by the node's steady clock: 1 + nanoseconds since its start; 0 = never
	quiet  atomic.Uint64 // faults since the last line
}

// undeclared returns the first thing that a refused req names and the view, or its
// keyspace, does not have. ScopeUnlisted is no mistake. It need not be asked about
// what was allowed: no key holds a scope that is not declared, or reaches a
// resource of a kind that is not. Nor can a node that is not up to date tell.
func (n *Node) undeclared(d *Decision, req *Request) (fault, bool) {
	if d.Allowed() || d.Reason == events.ReasonVerifierStale {
		return 0, false
	}
	var g *keyspace.Compiled
	switch {
	case d.Key.Exists():
		g = &d.Key.Rules.Compiled
	case req.Keyspace == "":
		return 0, false
	default:
		space := n.cfg.View.Keyspace(req.Keyspace)
		if space == nil {
			return faultKeyspace, true
		}
		g = &space.Rules().Compiled
	}
	switch {
	case req.Scope != "" && req.Scope != keyspace.ScopeUnlisted && !g.HasScope(req.Scope):
		return faultScope, true
	case !req.Resource.IsZero() && !slices.Contains(g.Resources, req.Resource.Kind):
		return faultKind, true
	}
	return 0, false
}

// note counts the fault, and logs it unless it was logged a moment ago. What the
// question names is in the line, without what could be a secret.
func (n *Node) note(ctx context.Context, f fault, endpoint, requestID string, req *Request, err error) {
	l, now := &n.faults[f], n.cfg.Now()
	l.seen.Add(1)
	l.last.Store(now.UnixMilli())
	before, since := l.logged.Load(), 1+int64(now.Sub(n.started))
	if before != 0 && time.Duration(since-before) < faultPause || !l.logged.CompareAndSwap(before, since) {
		l.quiet.Add(1)
		return
	}
	attrs := []slog.Attr{slog.String("fault", f.String()), slog.String("endpoint", endpoint), slog.String("request_id", requestID)}
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, events.WithoutSecrets(n.cfg.View, value)))
		}
	}
	add("keyspace", string(req.Keyspace))
	add("scope", req.Scope)
	if !req.Resource.IsZero() {
		add("resource", req.Resource.String())
	}
	if err != nil {
		add("err", err.Error())
	}
	attrs = append(attrs, slog.Uint64("not_logged_before", l.quiet.Swap(0)))
	n.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a gateway is misconfigured: "+f.advice(), attrs...)
}

// advice says to the operator what to do about the fault.
func (f fault) advice() string {
	switch f {
	case faultKeyspace:
		return "it names a keyspace that is not defined; correct the name, or define it"
	case faultScope:
		return "it asks for a scope that the keyspace does not declare; correct the name, or declare it"
	case faultKind:
		return "it names a kind of resource that the keyspace does not declare; correct the name, or declare it"
	case faultAddress:
		return "it is a trusted proxy and does not tell the client's address; let it set X-Forwarded-For and drop Forwarded"
	}
	return "its question cannot be read; correct what it asks for"
}

// undeclared says what is not declared, and which field names it.
func (f fault) undeclared() (field, message string) {
	switch f {
	case faultKeyspace:
		return "keyspace", "there is no keyspace of this name"
	case faultKind:
		return "resource", "the keyspace declares no resource of this kind"
	}
	return "scope", "the keyspace declares no scope of this name"
}

// misconfigured refuses the request because of what the gateway asks. The client
// learns that retrying does not help, in the keyspace's own envelope where there is
// a keyspace.
func (a *Answer) misconfigured(ask *Ask, f fault, g *keyspace.Compiled) {
	field, message := f.undeclared()
	p := misconfiguration(message, input.FieldErrors{{Field: field, Code: "undeclared", Message: message}})
	a.refuse(ask, g, p)
}

// misconfiguration is the answer to what only a gateway's operator can correct:
// whatever the client's key, and without Retry-After.
func misconfiguration(message string, f input.FieldErrors) *api.Problem {
	p := api.Errorf(http.StatusServiceUnavailable, codeMisconfigured, "the gateway is misconfigured: %s", message)
	p.Errors = f
	return p
}

// unreadable is the answer to a question that does not follow its grammar; why names the
// parameter. A piece of it may be the client's, as the id of a resource, and hold a secret.
func (n *Node) unreadable(why error) *api.Problem {
	message := "its question cannot be read"
	if p, ok := errors.AsType[*api.Problem](why); ok {
		message += ": " + p.Detail
	}
	f, _ := errors.AsType[input.FieldErrors](why)
	f = slices.Clone(f)
	for i := range f {
		f[i].Message = events.WithoutSecrets(n.cfg.View, f[i].Message)
	}
	return misconfiguration(message, f)
}

// Malformed refuses a request because the gateway's configuration asks in a way
// that cannot be read: 503 for the client, and f for the operator's log too.
func (n *Node) Malformed(ctx context.Context, ask *Ask, f input.FieldErrors) *Answer {
	return n.malformed(ctx, ask, n.unreadable(f), f)
}

// malformed refuses a question that cannot be read: p for the client, and why for
// the operator's log.
func (n *Node) malformed(ctx context.Context, ask *Ask, p *api.Problem, why error) *Answer {
	n.note(ctx, faultMalformed, ask.Endpoint, ask.RequestID, &Request{}, why)
	ans := ask.answer()
	ans.refuse(ask, nil, p)
	n.finish(ans, ask)
	return ans
}
