package verifier

import (
	"context"
	"net/http"

	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// The headers by which a page's browser asks and is told what the page may do (Fetch
// standard, section 3.2).
const (
	headerOrigin        = "Origin"
	headerRequestMethod = "Access-Control-Request-Method"
	headerAllowOrigin   = "Access-Control-Allow-Origin"
	headerAllowMethods  = "Access-Control-Allow-Methods"
	headerAllowHeaders  = "Access-Control-Allow-Headers"
	headerExposeHeaders = "Access-Control-Expose-Headers"
	headerMaxAge        = "Access-Control-Max-Age"
)

// preflightAge is for how many seconds a browser may remember the answer to a preflight:
// as long as a change of the definition may take to reach it.
const preflightAge = "600"

// IsPreflight reports whether a client's request of this method and these headers is a
// preflight: what a browser asks, without a key, before it sends a page's request.
func IsPreflight(method string, header func(name string) []string) bool {
	return method == http.MethodOptions && len(header(headerOrigin)) > 0 && len(header(headerRequestMethod)) > 0
}

// Preflight answers a preflight as the keyspace's definition says. It needs no key, is no
// use, and is never for the upstream, so the answer is no Allowed one: it has status 204,
// with Access-Control headers if pages of the origin may call. Which method and which
// headers a request may have is the upstream's to say. A fault in ask gets the answer that
// Answer gives it.
func (n *Node) Preflight(ctx context.Context, ask *Ask) *Answer {
	ans := ask.answer()
	if ask.RequestID != "" {
		ans.Header.Set(api.RequestIDHeader, ask.RequestID)
	}
	g := n.definition(ctx, ask, ans, &Request{Keyspace: ask.Keyspace, RequestID: ask.RequestID})
	if g == nil {
		return ans
	}
	ans.Status = http.StatusNoContent
	if ans.open(ask, g); ans.Header.Get(headerAllowOrigin) == "" {
		return ans
	}
	h := ans.Header
	h.Del(headerExposeHeaders) // of the answer that follows
	h.Set(headerAllowMethods, "GET, HEAD, POST, PUT, PATCH, DELETE")
	h.Set(headerAllowHeaders, g.Credential.HeaderName()+", *") // "*" does not stand for Authorization
	h.Set(headerMaxAge, preflightAge)
	return ans
}

// open lets a page read the answer if the definition allows its origin. Cookies are not
// asked for, so no page reads an answer to another user's request.
func (a *Answer) open(ask *Ask, g *keyspace.Compiled) {
	if len(g.CORS.Origins) == 0 || ask.Header == nil {
		return
	}
	origin := ""
	if values := ask.Header(headerOrigin); len(values) == 1 {
		origin = values[0]
	}
	allowed := g.CORS.Allows(origin)
	if g.CORS.Origins[0] != keyspace.AnyOrigin { // another page's answer is another one
		a.Header.Set("Vary", headerOrigin)
	}
	if allowed != "" {
		a.Header.Set(headerAllowOrigin, allowed)
		a.Header.Set(headerExposeHeaders, "*")
	}
}
