package audit

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
)

// TestExportOfARevokedKeyIsCutOff: a key that is revoked while its export runs reads no
// further, whether its reader takes bytes or waits, and the record says why.
func TestExportOfARevokedKeyIsCutOff(t *testing.T) {
	f := newFixture(t)
	for range 40 { // more than the buffers of a connection
		f.publish(t, 1000)
	}
	waitCopied(t, f.store, f.log)
	var revoked atomic.Bool
	srv := serveEndpointWhile(t, f.store, f.log, func() error {
		if revoked.Load() {
			return api.Errorf(http.StatusUnauthorized, "key_revoked", "the key is revoked")
		}
		return nil
	})
	for name, pace := range map[string]time.Duration{"a reader that waits": 0, "a reader that takes a little": 50 * time.Millisecond} {
		revoked.Store(false)
		before := len(f.log.Reads().Records())
		req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/v1/audit/exports", strings.NewReader(`{"kind":"uses","format":"jsonl"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Who", "root")
		resp, err := smallReader(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		revoked.Store(true)
		var end *events.Recorded
		eventually(t, func() error {
			if pace > 0 {
				_, _ = io.ReadFull(resp.Body, make([]byte, 100))
			}
			records := f.log.Reads().Records()[before:]
			if len(records) != 2 {
				return fmt.Errorf("%s: %d events", name, len(records))
			}
			end = &records[1]
			return nil
		})
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("%s: its copy seems to be whole", name)
		}
		resp.Body.Close()
		d := end.Data.(*events.AuditExportEnded)
		if d.Complete || d.Rows == 0 || d.Rows >= 40_000 || end.Reason != "broken off: the key is revoked" {
			t.Errorf("%s: %+v, reason %q", name, d, end.Reason)
		}
		waitCopied(t, f.store, f.log)
		revoked.Store(false)
		if _, body := call(t, srv, "root", "GET", "/v1/audit/exports/"+d.Export.String(), ""); !strings.Contains(body, `"state":"broken_off"`) || !strings.Contains(body, `"reason":"broken off: the key is revoked"`) {
			t.Errorf("%s: %s", name, body)
		}
	}
}
