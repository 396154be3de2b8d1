package verifier

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

// lost is what net/http hands a request of a client that resets its HTTP/2 stream: Write
// returns an error while what was written may still be sent.
type lost struct {
	*httptest.ResponseRecorder
	sends []byte
}

func (l *lost) Write(b []byte) (int, error) {
	l.sends = b
	return 0, errors.New("http2: stream closed")
}

// An answer that is still being sent to a client that has gone is not overwritten by
// another client's.
func TestNoAnswerInABufferThatIsStillSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.key("one", nil)
		w.keyIn(scribe, "other", secretOf("two"), nil)
		for path, body := range map[string]string{"/v1/verify": `{"key":%q}`, "/v1/verify/batch": `{"requests":[{"key":%q}]}`} {
			ask := func(rw http.ResponseWriter, secret string) {
				t.Helper()
				w.mux.ServeHTTP(rw, httptest.NewRequest("POST", path, strings.NewReader(fmt.Sprintf(body, secret))))
			}
			for range 50 { // a pool may drop a buffer
				gone := &lost{ResponseRecorder: httptest.NewRecorder()}
				ask(gone, secretOf("one"))
				sent := string(gone.sends)
				ask(httptest.NewRecorder(), secretOf("two"))
				if string(gone.sends) != sent {
					t.Fatalf("%s: a client that has gone is sent\n%s\nand its answer was\n%s", path, gone.sends, sent)
				}
				if !strings.Contains(sent, `"allowed":true`) {
					t.Fatal(sent)
				}
			}
		}
		w.end()
	})
}
