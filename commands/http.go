package commands

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// Routes adds control's endpoints to mux.
func (h *Handler) Routes(mux *http.ServeMux, auth api.Authenticator) {
	routes := &api.Routes{Mux: mux, Auth: auth, Fail: h.fail}
	route := func(pattern, scope, query string, body api.Body, serve func(*request) (*answer, error)) {
		e := api.Endpoint{Pattern: pattern, Scope: scope, Query: query, Body: body, Bounds: bounds}
		routes.Handle(e, func(w http.ResponseWriter, r *api.Request) error {
			if r.Query.Has("wait") {
				// The answer may hold a secret. It comes after the command and the wait, which
				// may take longer than the server's own deadline.
				_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(waitMax + time.Minute))
			}
			a, err := h.current(scope, serve)(&request{r})
			if err != nil {
				if refusal, ok := errors.AsType[*Refusal](err); ok && refusal.etag != "" {
					w.Header().Set("ETag", refusal.etag)
				}
				return err
			}
			if a.replayed {
				w.Header().Set(ReplayedHeader, "true")
			}
			if a.etag != "" {
				w.Header().Set("ETag", a.etag)
			}
			api.WriteJSON(w, r.Request, a.status, a.body)
			return nil
		})
	}
	// waits is route for a command that can wait for its receipt.
	waits := func(pattern, query string, scope string, body api.Body, serve func(*request) (*answer, error)) {
		route(pattern, scope, strings.TrimSpace(query+waitQuery), body, h.waiting(serve))
	}
	const (
		keyspace = "/v1/keyspaces/{keyspace}"
		key      = "/v1/keys/{id}"
		tenant   = keyspace + "/tenants/{tenant}"
		role     = tenant + "/roles/{role}"
	)
	route("GET /v1/keyspaces", events.ScopeKeyspacesRead, "", api.NoBody, h.listKeyspaces)
	route("GET "+keyspace, events.ScopeKeyspacesRead, "", api.NoBody, h.getKeyspace)
	waits("PUT "+keyspace, "dry_run accept_violations accept_widening", events.ScopeKeyspacesWrite, api.RequiredBody, h.putKeyspace)

	route("POST "+keyspace+"/keys", events.ScopeKeysWrite, "", api.RequiredBody, h.postKey)
	route("POST "+keyspace+"/keys/import", events.ScopeKeysWrite, "", api.RequiredBody, h.postImport)
	route("GET "+keyspace+"/keys", events.ScopeKeysRead, "tenant status name created_by cursor limit", api.NoBody, h.listKeys)
	route("GET /v1/keys", events.ScopeKeysRead, "tenant status name created_by cursor limit", api.NoBody, h.listKeys)
	waits("POST /v1/keys/revoke", "", events.ScopeKeysWrite, api.RequiredBody, h.postRevokeMany)
	route("GET "+key, events.ScopeKeysRead, "as_of", api.NoBody, h.getKey)
	for _, of := range []string{key, role, tenant, keyspace} {
		scope := events.ScopeKeysRead
		if of == keyspace {
			scope = events.ScopeKeyspacesRead
		}
		route("GET "+of+receiptSuffix, scope, strings.TrimSpace(waitQuery), api.NoBody, h.getReceipt)
	}
	route("GET "+key+"/history", events.ScopeKeysRead, "cursor limit", api.NoBody, h.getHistory)
	waits("PATCH "+key, "", events.ScopeKeysWrite, api.RequiredBody, changes("patch", h, func(c *Patch) string { return c.Reason }))
	waits("PUT "+key+"/scopes", "", events.ScopeKeysWrite, api.RequiredBody, changes("scopes", h, func(c *AssignScopes) string { return c.Reason }))
	waits("PUT "+key+"/resources", "", events.ScopeKeysWrite, api.RequiredBody, changes("resources", h, func(c *AssignResources) string { return c.Reason }))
	waits("PUT "+key+"/allowlist", "", events.ScopeKeysWrite, api.RequiredBody, changes("allowlist", h, func(c *SetAllowlist) string { return c.Reason }))
	waits("PUT "+key+"/limit", "", events.ScopeKeysWrite, api.RequiredBody, changes("limit", h, func(c *SetLimit) string { return c.Reason }))
	waits("POST "+key+"/disable", "", events.ScopeKeysWrite, api.OptionalBody, changes("disable", h, func(c *Disable) string { return c.Reason }))
	route("POST "+key+"/enable", events.ScopeKeysWrite, "", api.OptionalBody, changes("enable", h, func(c *Enable) string { return c.Reason }))
	waits("DELETE "+key, "code reason", events.ScopeKeysWrite, api.OptionalBody, changes("revoke", h, func(c *Revoke) string { return c.Reason }))
	waits("POST "+key+"/rotate", "", events.ScopeKeysWrite, api.OptionalBody, h.postRotate)

	route("GET /v1/nodes", events.ScopeKeysRead, "", api.NoBody, h.listNodes)

	route("GET "+tenant, events.ScopeKeysRead, "", api.NoBody, h.getTenant)
	waits("PUT "+tenant+"/limit", "", events.ScopeKeysWrite, api.RequiredBody, h.putTenantLimit)
	route("GET "+tenant+"/roles", events.ScopeKeysRead, "", api.NoBody, h.listRoles)
	route("GET "+role, events.ScopeKeysRead, "", api.NoBody, h.getRole)
	waits("PUT "+role, "accept_holders", events.ScopeKeysWrite, api.RequiredBody, h.putRole)
	waits("DELETE "+role, "reason", events.ScopeKeysWrite, api.OptionalBody, h.deleteRole)
}

// bounds says how much the bodies of control's endpoints may hold.
var bounds = api.Bounds{Lists: map[string]int{"keys": MaxImport}}

// request is what an endpoint works on.
type request struct{ *api.Request }

type answer struct {
	status   int
	body     any
	etag     string // of the one resource that the body shows as it is now, else ""
	replayed bool
	seq      events.Seq // where a command's events are
}

// fail answers err: as a problem, or in the words of the keyspace that the request
// is about where it says "Prefer: envelope=regime". That is the keyspace of the
// path or of the key in the path, if the caller may know of it. A caller that the
// endpoint did not let in is told nothing in its words.
func (h *Handler) fail(w http.ResponseWriter, r *api.Request, err error) {
	err = problem(err)
	if r.Who.Actor == (events.Actor{}) || !api.Prefers(r.Header, "envelope", "regime") {
		api.Write(w, r.Request, err)
		return
	}
	id := events.KeyspaceID(r.PathValue("keyspace"))
	if key, err := events.ParseKeyID(r.PathValue("id")); err == nil {
		if k, ok := h.cfg.Dir.Key(key); ok && sees(&r.Who, &k) {
			id = k.Keyspace
		}
	}
	rules := h.cfg.Dir.Rules(id)
	if rules == nil || !seesKeyspace(&r.Who, id) {
		api.Write(w, r.Request, err)
		return
	}
	w.Header().Set("Preference-Applied", "envelope=regime")
	api.WriteFailure(w, r.Request, rules, api.AsProblem(r.Request, err).Failure())
}

// call makes what comes with a command, once the command is decoded.
func (r *request) call(command any, reason string) (*Call, error) {
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return nil, err
	}
	c := &Call{Principal: r.Who, Reason: reason}
	if c.If, err = precondition(r.Header); err != nil {
		return nil, err
	}
	if key != "" {
		c.Command = CommandID(r.Who.Actor, key, r.Method, r.URL.Path, canonical(command))
	}
	return c, nil
}

// keyID reads the key's id from the path. What is no id names no key.
func (r *request) keyID() (events.KeyID, error) {
	id, err := events.ParseKeyID(r.PathValue("id"))
	if err != nil {
		return id, refuse(CodeNotFound, "", "there is no such key: %s", err)
	}
	return id, nil
}

func (r *request) keyspace() events.KeyspaceID { return events.KeyspaceID(r.PathValue("keyspace")) }

// written answers a write with the resource, which stands at rev, and the
// position of its events.
func (h *Handler) written(status int, data any, rev uint64, done *Done) *answer {
	return &answer{status: status, body: api.One{Data: data, Position: h.position(done.Seq)}, etag: etag(rev), replayed: done.Replayed, seq: done.Seq}
}

// position returns the position of what was written at seq and is acknowledged. Of what
// was written so long ago that the view does not know its fingerprint any more, it
// returns the view's own, which holds it too.
func (h *Handler) position(seq events.Seq) *events.Position {
	history, ok := h.cfg.Dir.Fingerprint(seq)
	if at := h.cfg.Dir.At(); !ok && at > seq {
		seq = at
		history, ok = h.cfg.Dir.Fingerprint(seq)
	}
	if !ok {
		return nil
	}
	return &events.Position{Log: h.cfg.Log.ID(), Seq: seq, History: history}
}

func (h *Handler) writtenKey(status int, done *Done) *answer {
	v := ViewKey(&done.Key, events.At(h.cfg.Now()))
	v.Key = done.Secret.Reveal()
	if status == http.StatusCreated && !done.Replayed {
		v.LastUsedAt = Used(0)
	} // a change does not wait for the record of uses
	return h.written(status, v, v.Rev, done)
}

func (h *Handler) postKey(r *request) (*answer, error) {
	var c Create
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	if err := noPrecondition(r.Header); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	done, err := h.Create(r.Context(), call, r.keyspace(), &c)
	if err != nil {
		return nil, err
	}
	return h.writtenKey(http.StatusCreated, &done), nil
}

// postImport answers 200 for every import that was gone through: what became of
// each key is in the list. It needs no Idempotency-Key: each digest is one.
func (h *Handler) postImport(r *request) (*answer, error) {
	var c Import
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	if err := noPrecondition(r.Header); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	results, done, err := h.Import(r.Context(), call, r.keyspace(), &c)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(results, func(k ImportResult) bool { return beyondPower(k.Errors) }) {
		r.Record(&Refusal{Code: CodeBeyondOwnPower}) // the answer is 200, and the caller was refused all the same
	}
	a := h.written(http.StatusOK, results, 0, &done)
	a.etag = "" // a list of many
	return a, nil
}

// beyondPower reports whether one of many was refused for want of power.
func beyondPower(f input.FieldErrors) bool {
	return slices.ContainsFunc(f, func(e input.FieldError) bool { return e.Code == string(CodeBeyondOwnPower) })
}

// changes makes the route of a command on one key. Only status commands, which
// ask for nothing more, may come without a body.
func changes[C any, P interface {
	*C
	Change
}](command string, h *Handler, reason func(P) string) func(*request) (*answer, error) {
	return func(r *request) (*answer, error) {
		id, err := r.keyID()
		if err != nil {
			return nil, err
		}
		c := P(new(C))
		if err := decodeChange(r, c); err != nil {
			return nil, err
		}
		call, err := r.call(c, reason(c))
		if err != nil {
			return nil, err
		}
		done, err := h.Change(r.Context(), call, command, id, c)
		if err != nil {
			return nil, err
		}
		return h.writtenKey(http.StatusOK, &done), nil
	}
}

func decodeChange(r *request, c Change) error {
	if err := r.Decode(c); err != nil {
		return err
	}
	revoke, ok := c.(*Revoke)
	if !ok {
		return nil
	}
	var f input.FieldErrors
	code := string(revoke.Code)
	fromQuery(r, &f, "code", &code)
	fromQuery(r, &f, "reason", &revoke.Reason)
	revoke.Code = events.RevokeCode(code)
	return f.OrNil()
}

// fromQuery fills a member from the query parameter of the same name. One that
// stands in the body too is refused: either would be dropped silently (C7).
func fromQuery(r *request, f *input.FieldErrors, name string, member *string) {
	if !r.Query.Has(name) {
		return
	}
	if *member != "" {
		f.Add(name, "conflict", "want it in the body or in the query, not in both")
	}
	*member = r.Query.Get(name)
}

func (h *Handler) postRotate(r *request) (*answer, error) {
	id, err := r.keyID()
	if err != nil {
		return nil, err
	}
	var c Rotate
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	done, err := h.Rotate(r.Context(), call, id, &c)
	if err != nil {
		return nil, err
	}
	return h.writtenKey(http.StatusCreated, &done), nil
}

func (h *Handler) putKeyspace(r *request) (*answer, error) {
	var c DefineKeyspace
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	var f input.FieldErrors
	dry := r.Query.Flag(&f, "dry_run")
	c.AcceptViolations = r.Query.Flag(&f, "accept_violations")
	c.AcceptWidening = r.Query.Flag(&f, "accept_widening")
	if dry && c.AcceptViolations {
		f.Add("accept_violations", "conflict", "want either dry_run or accept_violations, not both")
	}
	if dry && c.AcceptWidening {
		f.Add("accept_widening", "conflict", "want either dry_run or accept_widening, not both")
	}
	if len(f) > 0 {
		return nil, f
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	if dry {
		ks, review, err := h.ReviewKeyspace(r.Context(), call, r.keyspace(), &c)
		if err != nil {
			return nil, err
		}
		return &answer{status: http.StatusOK, body: reviewAnswer{viewKeyspace(&ks), *review}}, nil
	}
	ks, done, err := h.DefineKeyspace(r.Context(), call, r.keyspace(), &c)
	if err != nil {
		return nil, err
	}
	return h.written(http.StatusOK, viewKeyspace(&ks), ks.Rev, &done), nil
}

func (r *request) roleRef() RoleRef {
	return RoleRef{r.keyspace(), events.TenantID(r.PathValue("tenant")), events.RoleID(r.PathValue("role"))}
}

func (h *Handler) putRole(r *request) (*answer, error) {
	var c DefineRole
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	var f input.FieldErrors
	if c.AcceptHolders = r.Query.Flag(&f, "accept_holders"); len(f) > 0 {
		return nil, f
	}
	role, done, err := h.DefineRole(r.Context(), call, r.roleRef(), &c)
	if err != nil {
		return nil, err
	}
	return h.written(http.StatusOK, viewRole(&role), role.Rev, &done), nil
}

func (h *Handler) deleteRole(r *request) (*answer, error) {
	var c DeleteRole
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	var f input.FieldErrors
	if fromQuery(r, &f, "reason", &c.Reason); len(f) > 0 {
		return nil, f
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	role, done, err := h.DeleteRole(r.Context(), call, r.roleRef(), &c)
	if err != nil {
		return nil, err
	}
	return h.written(http.StatusOK, viewRole(&role), role.Rev, &done), nil
}
