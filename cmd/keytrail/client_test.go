package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events"
)

// TestClient does with the client package what a program does that embeds no verifier:
// a key's life, a decision about it, and the record of both.
func TestClient(t *testing.T) {
	p := up(t, filepath.Join(t.TempDir(), "data"))
	p.must(t, "keyspace", "apply", "-f", regime)
	ctx := t.Context()
	c := &client.Client{Base: p.url, Key: events.NewSecret(p.root), Patience: time.Minute, UserAgent: "shop"}
	made, err := c.CreateKey(ctx, "scribe-sight", client.NewKey{
		Tenant: "acme", Name: "ci", Scopes: []string{"read"}, Resources: []events.Resource{{Kind: "project", ID: "proj_1"}},
		Allowlist: []string{"203.0.113.0/24"}, ExpiresIn: "30d", Limit: &client.Limit{PerMinute: 60, Burst: 10}, Metadata: map[string]string{"team": "build"}, Idempotency: "first",
	})
	if err != nil || made.Secret.IsZero() || made.Status != "active" || made.Limit.Burst != 10 || time.Until(made.ExpiresAt) < 29*24*time.Hour || made.Metadata["team"] != "build" {
		t.Fatalf("%+v, %v", made, err)
	}
	again, err := c.CreateKey(ctx, "scribe-sight", client.NewKey{Tenant: "acme", Name: "other", Idempotency: "first"})
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Status < 400 || again.ID != "" {
		t.Errorf("another key under the same idempotency key: %+v, %v", again, err)
	}
	_, err = c.CreateKey(ctx, "scribe-sight", client.NewKey{Tenant: "acme", Name: "bad", Scopes: []string{"rewrite"}})
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Status != 422 || len(p.Errors) != 1 || p.RequestID == "" {
		t.Errorf("an unknown scope: %v", err)
	}
	ask := client.Question{Secret: made.Secret, Keyspace: "scribe-sight", Scope: "read", Resource: events.Resource{Kind: "project", ID: "proj_1"}, IP: "203.0.113.7", Scheme: "https", Cost: 2, MinPosition: made.Position, MaxStaleness: time.Minute}
	d, err := c.Verify(ctx, ask)
	if err != nil || !d.Allowed || d.KeyID != made.ID || d.Limit == nil || d.Limit.Remaining != 8 || d.UseID == "" {
		t.Errorf("%+v, %v", d, err)
	}
	if ask.MinPosition, err = c.RevokeKey(ctx, made.ID, "superseded", "the pipeline moved"); err != nil {
		t.Fatal(err)
	}
	if d, err := c.Verify(ctx, ask); err != nil || d.Allowed || d.Reason != "key_revoked" || d.Status != 401 {
		t.Errorf("%+v, %v", d, err)
	}
	eventually(t, func() string {
		reasons, types := "", ""
		for u, err := range c.Uses(ctx, map[string]string{"key": made.ID}) {
			if err != nil {
				return err.Error()
			}
			reasons += u.Reason + " "
		}
		for e, err := range c.Events(ctx, map[string]string{"key": made.ID}) {
			if err != nil {
				return err.Error()
			}
			types += e.Type + " "
		}
		if reasons != "key_revoked ok " || types != "key.revoked key.created " {
			return fmt.Sprintf("the record has %q and %q", reasons, types)
		}
		return ""
	})
}
