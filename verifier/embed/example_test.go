package embed_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/verifier"
	"github.com/keytrail/keytrail/verifier/embed"
)

// A program verifies keys in its own memory. Here a log is deployed for it first, with a
// keyspace reports; a program has the address and its password from its configuration.
func ExampleOpen() {
	log := deploy()
	defer log.end()
	id, secret := log.create("ci", `,"scopes":["read"]`)

	ctx := context.Background()
	v, err := embed.Open(ctx, embed.Config{URL: log.srv.URL(), Name: "app-1", Password: log.password})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close(ctx)

	for _, scope := range []string{"read", "write"} {
		decision, err := v.Verify(ctx, verifier.Request{Secret: secret, Keyspace: "reports", Scope: scope})
		if err != nil {
			fmt.Println(err) // the question was not acceptable
			return
		}
		fmt.Println(scope, decision.Allowed(), decision.Reason, decision.Key.ID.String() == id)
	}
	// Output:
	// read true ok true
	// write false scope_missing true
}

// A handler behind Protect finds who calls it. The keyspace says where the key stands,
// here in X-Reports-Key, and what a client reads that is refused.
func ExampleVerifier_Protect() {
	log := deploy()
	defer log.end()
	_, secret := log.create("ci", `,"scopes":["read"],"resources":[{"kind":"project","id":"p1"}],"limit":{"per_minute":60,"burst":10}`)

	ctx := context.Background()
	v, err := embed.Open(ctx, embed.Config{URL: log.srv.URL(), Name: "app-1", Password: log.password})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close(ctx)

	protected := v.Protect("reports", func(r *http.Request) verifier.Demand {
		return verifier.Demand{Scope: "read", Resource: events.Resource{Kind: "project", ID: r.PathValue("project")}, Cost: 2}
	})
	mux := http.NewServeMux()
	mux.Handle("GET /projects/{project}", protected(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := verifier.PrincipalFrom(r.Context())
		fmt.Fprintf(w, "hello %s, you hold %v", p.Tenant, p.Scopes)
	})))

	remaining := "X-RateLimit-Remaining" // as the keyspace spells it
	for _, path := range []string{"/projects/p1", "/projects/p2"} {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("X-Reports-Key", secret.Reveal())
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		fmt.Println(path, w.Code, w.Header()[remaining])
		if w.Code == http.StatusOK {
			fmt.Println(w.Body)
		}
	}
	// Output:
	// /projects/p1 200 [8]
	// hello acme, you hold [read]
	// /projects/p2 403 [8]
}
