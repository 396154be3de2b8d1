package commands_test

import (
	"testing"

	"github.com/keytrail/keytrail/events"
)

// TestRefusedCommandsAreDenied: a command that the caller's power or reach does
// not admit is denied on the record of uses, also where the answer hides it; one
// that fails otherwise was allowed to be asked.
func TestRefusedCommandsAreDenied(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	w.define(n, "zeta", acme)
	made := func(path, body string) (events.Secret, string) {
		rec := n.do(w.root, "POST", path, body)
		secret := events.NewSecret(member(t, rec, "key"))
		w.secrets = append(w.secrets, secret)
		return secret, member(t, rec, "id")
	}
	operator, _ := made("/v1/keyspaces/keytrail/keys", `{"tenant":"operators","name":"t1","scopes":["keys:write","keyspaces:write"],
		"resources":[{"kind":"keyspace","id":"acme"},{"kind":"tenant","id":"t1"}]}`)
	_, near := made("/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"near"}`)
	_, far := made("/v1/keyspaces/zeta/keys", `{"tenant":"t1","name":"far"}`)
	_, foreign := made("/v1/keyspaces/acme/keys", `{"tenant":"t2","name":"foreign"}`)
	n.do(w.root, "PUT", "/v1/keyspaces/acme/tenants/t2/roles/dev", `{"scopes":["read"]}`)
	const nobody = "key_01J0000000000000000000000A"
	const digest = `"digest":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","hint":"h"`
	const definition = `{"key_types":[{"name":"a"}]}`
	for _, c := range []struct {
		method, path, body string
		status             int
		use                string
	}{
		{"GET", "/v1/keys/" + near, "", 200, "GET /v1/keys/{id} ok"},
		{"GET", "/v1/keys/" + nobody, "", 404, "GET /v1/keys/{id} ok"},
		{"GET", "/v1/keys/" + foreign, "", 404, "GET /v1/keys/{id} beyond_own_power"},
		{"GET", "/v1/keys/" + far + "/history", "", 404, "GET /v1/keys/{id}/history beyond_own_power"},
		{"POST", "/v1/keys/" + foreign + "/disable", "", 404, "POST /v1/keys/{id}/disable beyond_own_power"},
		{"PATCH", "/v1/keys/" + far, `{"name":"x"}`, 404, "PATCH /v1/keys/{id} beyond_own_power"},
		{"DELETE", "/v1/keys/" + nobody, "", 404, "DELETE /v1/keys/{id} ok"},
		{"POST", "/v1/keys/" + w.rootID.String() + "/rotate", "", 404, "POST /v1/keys/{id}/rotate beyond_own_power"},
		{"GET", "/v1/keyspaces/zeta", "", 404, "GET /v1/keyspaces/{keyspace} beyond_own_power"},
		{"GET", "/v1/keyspaces/nothing", "", 404, "GET /v1/keyspaces/{keyspace} ok"},
		{"GET", "/v1/keyspaces/zeta/keys", "", 404, "GET /v1/keyspaces/{keyspace}/keys beyond_own_power"},
		{"GET", "/v1/keyspaces/acme/tenants/t2", "", 404, "GET /v1/keyspaces/{keyspace}/tenants/{tenant} beyond_own_power"},
		{"GET", "/v1/keyspaces/acme/tenants/t2/roles/dev", "", 404, "GET /v1/keyspaces/{keyspace}/tenants/{tenant}/roles/{role} beyond_own_power"},
		{"GET", "/v1/keyspaces/acme/tenants/t1/roles/dev", "", 404, "GET /v1/keyspaces/{keyspace}/tenants/{tenant}/roles/{role} ok"},
		{"POST", "/v1/keyspaces/acme/keys", `{"tenant":"t2","name":"x"}`, 403, "POST /v1/keyspaces/{keyspace}/keys beyond_own_power"},
		{"POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"near"}`, 409, "POST /v1/keyspaces/{keyspace}/keys ok"},
		{"POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1"}`, 422, "POST /v1/keyspaces/{keyspace}/keys ok"},
		{"PUT", "/v1/keyspaces/keytrail", definition, 403, "PUT /v1/keyspaces/{keyspace} beyond_own_power"},
		{"PUT", "/v1/keyspaces/acme", definition, 403, "PUT /v1/keyspaces/{keyspace} beyond_own_power"},
		{"PUT", "/v1/keyspaces/acme/tenants/t2/limit", `{"limit":{"per_minute":1,"burst":1}}`, 403, "PUT /v1/keyspaces/{keyspace}/tenants/{tenant}/limit beyond_own_power"},
		{"POST", "/v1/keyspaces/acme/keys/import", `{"keys":[{` + digest + `,"tenant":"t2","name":"a"},{` + digest + `,"tenant":"t1","name":"b"}]}`, 200,
			"POST /v1/keyspaces/{keyspace}/keys/import beyond_own_power"},
		{"POST", "/v1/keyspaces/acme/keys/import", `{"keys":[{` + digest + `,"tenant":"t1","name":"c"}]}`, 200, "POST /v1/keyspaces/{keyspace}/keys/import ok"},
	} {
		*n.uses = nil
		rec := n.do(operator, c.method, c.path, c.body)
		if rec.Code != c.status || len(*n.uses) != 1 || (*n.uses)[0] != c.use {
			t.Errorf("%s %s: %d, on the record %q; want %d, %q\n%s", c.method, c.path, rec.Code, *n.uses, c.status, c.use, rec.Body)
		}
	}
}
