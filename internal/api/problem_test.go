package api

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// TestProblemsFitTheirRequest: a question is not told about a change, and a change is
// told what became of it.
func TestProblemsFitTheirRequest(t *testing.T) {
	for _, class := range []error{events.ErrNotStoring, events.ErrUnknownOutcome, events.ErrUnavailable} {
		for method, change := range map[string]bool{"GET": false, "HEAD": false, "POST": true, "PUT": true, "DELETE": true} {
			p := AsProblem(httptest.NewRequest(method, "/v1/keys/x", nil), fmt.Errorf("tried: %w", class))
			if p.Status != 503 && p.Status != 507 {
				t.Errorf("%s, %v: status %d", method, class, p.Status)
			}
			for _, of := range []string{"Idempotency-Key", "nothing was written", "this change"} {
				if !change && strings.Contains(p.Detail, of) {
					t.Errorf("%s, %v: %s", method, class, p.Detail)
				}
			}
			if change && !strings.Contains(p.Detail, "with the same Idempotency-Key") {
				t.Errorf("%s, %v: %s", method, class, p.Detail)
			}
		}
	}
}
