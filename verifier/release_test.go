package verifier

import (
	"errors"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// A node of an older release than the deployment writes holds no lease: it denies, and
// ends with the sentence that names the release.
func TestNoLeaseForAnOlderRelease(t *testing.T) {
	w := newWorld(t, nil)
	if _, err := w.node.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := w.log.Nodes(t.Context(), 0); err != nil || len(n.Leases) != 1 || n.Leases[0].Release != events.ThisRelease() {
		t.Fatalf("%+v, %v", n, err)
	}
	if err := w.log.RaiseRelease(t.Context(), "2.1"); err != nil {
		t.Fatal(err)
	}
	err := w.node.RunLease(t.Context())
	var newer *events.NewerError
	if !errors.As(err, &newer) || newer.Release != "2.1" {
		t.Fatal(err)
	}
	if d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret("any")}); d.Allowed() {
		t.Errorf("it allows: %+v", d)
	}
	if err := w.node.Ready(); err == nil || !strings.Contains(err.Error(), "Upgrade this process to release 2.1, or newer") {
		t.Errorf("ready: %v", err)
	}
}
