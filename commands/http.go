package commands

import (
	"bufio"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// Routes puts the control door on mux. Every route authenticates first. Bodies
// and query parameters are read strictly: what a route does not know is refused.
func (h *Handler) Routes(mux *http.ServeMux, auth api.Authenticator) {
	route := func(pattern, scope, params string, serve func(*request) (*answer, error)) {
		known := strings.Fields(params)
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, err := api.Authorize(auth, r, scope)
			var a *answer
			if err == nil {
				a, err = h.serve(&request{r, who}, known, serve)
			}
			if err != nil {
				h.fail(w, r, &who, problem(err))
				return
			}
			if a.replayed {
				w.Header().Set(ReplayedHeader, "true")
			}
			api.WriteJSON(w, r, a.status, a.body)
		})
	}
	const (
		keyspace = "/v1/keyspaces/{keyspace}"
		key      = "/v1/keys/{id}"
		tenant   = keyspace + "/tenants/{tenant}"
		role     = tenant + "/roles/{role}"
	)
	route("GET /v1/keyspaces", events.ScopeKeyspacesRead, "", h.listKeyspaces)
	route("GET "+keyspace, events.ScopeKeyspacesRead, "", h.getKeyspace)
	route("PUT "+keyspace, events.ScopeKeyspacesWrite, "dry_run accept_violations", h.putKeyspace)

	route("POST "+keyspace+"/keys", events.ScopeKeysWrite, "", h.postKey)
	route("POST "+keyspace+"/keys/import", events.ScopeKeysWrite, "", h.postImport)
	route("GET "+keyspace+"/keys", events.ScopeKeysRead, "tenant status name cursor limit", h.listKeys)
	route("GET "+key, events.ScopeKeysRead, "as_of", h.getKey)
	route("GET "+key+"/history", events.ScopeKeysRead, "cursor limit", h.getHistory)
	route("PATCH "+key, events.ScopeKeysWrite, "", changes("patch", h, func(c *Patch) string { return c.Reason }))
	route("PUT "+key+"/scopes", events.ScopeKeysWrite, "", changes("scopes", h, func(c *AssignScopes) string { return c.Reason }))
	route("PUT "+key+"/resources", events.ScopeKeysWrite, "", changes("resources", h, func(c *AssignResources) string { return c.Reason }))
	route("PUT "+key+"/allowlist", events.ScopeKeysWrite, "", changes("allowlist", h, func(c *SetAllowlist) string { return c.Reason }))
	route("PUT "+key+"/limit", events.ScopeKeysWrite, "", changes("limit", h, func(c *SetLimit) string { return c.Reason }))
	route("POST "+key+"/disable", events.ScopeKeysWrite, "", changes("disable", h, func(c *Disable) string { return c.Reason }))
	route("POST "+key+"/enable", events.ScopeKeysWrite, "", changes("enable", h, func(c *Enable) string { return c.Reason }))
	route("DELETE "+key, events.ScopeKeysWrite, "code reason", changes("revoke", h, func(c *Revoke) string { return c.Reason }))
	route("POST "+key+"/rotate", events.ScopeKeysWrite, "", h.postRotate)

	route("GET "+tenant, events.ScopeKeysRead, "", h.getTenant)
	route("PUT "+tenant+"/limit", events.ScopeKeysWrite, "", h.putTenantLimit)
	route("GET "+tenant+"/roles", events.ScopeKeysRead, "", h.listRoles)
	route("GET "+role, events.ScopeKeysRead, "", h.getRole)
	route("PUT "+role, events.ScopeKeysWrite, "", h.putRole)
	route("DELETE "+role, events.ScopeKeysWrite, "reason", h.deleteRole)
}

// request is what a route works on: the HTTP request and who stands behind it.
type request struct {
	*http.Request
	who events.Principal
}

type answer struct {
	status   int
	body     any
	replayed bool
}

func (h *Handler) serve(r *request, params []string, serve func(*request) (*answer, error)) (*answer, error) {
	if err := checkQuery(r.Request, params); err != nil {
		return nil, err
	}
	return serve(r)
}

// fail answers err: as a problem, or in the words of the regime that the request
// is about where it says "Prefer: envelope=regime". That is the keyspace of the
// path or of the key in the path, if the caller may know of it; whom the door did
// not let in is told nothing in its words.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, who *events.Principal, err error) {
	if who.Actor == (events.Actor{}) || !api.Prefers(r.Header, "envelope", "regime") {
		api.Write(w, r, err)
		return
	}
	id := events.KeyspaceID(r.PathValue("keyspace"))
	if key, err := events.ParseKeyID(r.PathValue("id")); err == nil {
		if k, ok := h.cfg.Dir.Key(key); ok && sees(who, &k) {
			id = k.Keyspace
		}
	}
	ks, ok := h.cfg.Dir.Keyspace(id)
	if !ok || !seesKeyspace(who, id) {
		api.Write(w, r, err)
		return
	}
	var envelope *events.Envelope
	if e := ks.Definition.Errors.Envelope; e != nil {
		envelope, _ = events.CompileEnvelope(e) // what is stored is valid
	}
	w.Header().Set("Preference-Applied", "envelope=regime")
	api.WriteFailure(w, r, &ks.Definition, envelope, api.AsProblem(r, err).Failure())
}

// checkQuery refuses parameters that the route does not have, that stand twice,
// or that are no text.
func checkQuery(r *http.Request, known []string) error {
	bad := func(name, detail string, args ...any) error { return refuse(CodeQuery, clip(name), detail, args...) }
	query := r.URL.Query()
	names := make([]string, 0, len(query))
	for name := range query {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := query[name]
		switch {
		case !slices.Contains(known, name) && len(known) == 0:
			return bad(name, "query parameter %q is unknown here: this route has none", clip(name))
		case !slices.Contains(known, name):
			return bad(name, "query parameter %q is unknown here: want %s", clip(name), strings.Join(known, ", "))
		case len(values) > 1:
			return bad(name, "query parameter %q stands %d times: want it once", name, len(values))
		case !utf8.ValidString(values[0]):
			return bad(name, "query parameter %q: want UTF-8", name)
		}
	}
	return nil
}

// call makes what comes with a command, once the command is decoded.
func (r *request) call(command any, reason string) (*Call, error) {
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return nil, err
	}
	c := &Call{Principal: r.who, Reason: reason}
	if key != "" {
		c.Command = CommandID(r.who.Actor, key, r.Method, r.URL.Path, canonical(command))
	}
	return c, nil
}

// decodeOptional is api.Decode for bodies that may be left out.
func (r *request) decodeOptional(v any) error {
	body := bufio.NewReader(r.Body)
	if _, err := body.Peek(1); err == io.EOF {
		return nil
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{body, r.Body}
	return api.Decode(r.Request, v)
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

func (h *Handler) written(status int, data any, done *Done) *answer {
	pos := events.Position{Log: h.cfg.Log.ID(), Seq: done.Seq}
	return &answer{status: status, body: api.One{Data: data, Position: &pos}, replayed: done.Replayed}
}

func (h *Handler) writtenKey(status int, done *Done) *answer {
	v := ViewKey(&done.Key, events.At(h.cfg.Now()))
	v.Key = done.Secret.Reveal()
	return h.written(status, v, done)
}

func (h *Handler) postKey(r *request) (*answer, error) {
	var c Create
	if err := api.Decode(r.Request, &c); err != nil {
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
	if err := api.Decode(r.Request, &c); err != nil {
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
	return h.written(http.StatusOK, results, &done), nil
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
	switch c := c.(type) {
	case *Disable, *Enable:
		return r.decodeOptional(c)
	case *Revoke:
		if err := r.decodeOptional(c); err != nil {
			return err
		}
		var f events.FieldErrors
		code := string(c.Code)
		fromQuery(r, &f, "code", &code)
		fromQuery(r, &f, "reason", &c.Reason)
		c.Code = events.RevokeCode(code)
		return f.OrNil()
	}
	return api.Decode(r.Request, c)
}

// fromQuery fills a member from the query parameter of the same name. One that
// stands in the body too is refused: either would be dropped silently (C7).
func fromQuery(r *request, f *events.FieldErrors, name string, member *string) {
	query := r.URL.Query()
	if !query.Has(name) {
		return
	}
	if *member != "" {
		f.Add(name, "conflict", "want it in the body or in the query, not in both")
	}
	*member = query.Get(name)
}

func (h *Handler) postRotate(r *request) (*answer, error) {
	id, err := r.keyID()
	if err != nil {
		return nil, err
	}
	var c Rotate
	if err := r.decodeOptional(&c); err != nil {
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
	if err := api.Decode(r.Request, &c); err != nil {
		return nil, err
	}
	var f events.FieldErrors
	dry := r.flag(&f, "dry_run")
	c.AcceptViolations = r.flag(&f, "accept_violations")
	if dry && c.AcceptViolations {
		f.Add("accept_violations", "conflict", "want either dry_run or accept_violations, not both")
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
	return h.written(http.StatusOK, viewKeyspace(&ks), &done), nil
}

// flag reads a query parameter that is true or false; absent is false.
func (r *request) flag(f *events.FieldErrors, name string) bool {
	query := r.URL.Query()
	v := query.Get(name)
	if query.Has(name) && v != "true" && v != "false" {
		f.Add(name, "invalid", "want true or false")
	}
	return v == "true"
}

func (r *request) roleRef() RoleRef {
	return RoleRef{r.keyspace(), events.TenantID(r.PathValue("tenant")), events.RoleID(r.PathValue("role"))}
}

func (h *Handler) putRole(r *request) (*answer, error) {
	var c DefineRole
	if err := api.Decode(r.Request, &c); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	role, done, err := h.DefineRole(r.Context(), call, r.roleRef(), &c)
	if err != nil {
		return nil, err
	}
	return h.written(http.StatusOK, viewRole(&role), &done), nil
}

func (h *Handler) deleteRole(r *request) (*answer, error) {
	var c DeleteRole
	if err := r.decodeOptional(&c); err != nil {
		return nil, err
	}
	var f events.FieldErrors
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
	return h.written(http.StatusOK, viewRole(&role), &done), nil
}
