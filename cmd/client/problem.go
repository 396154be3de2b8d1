package client

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Problem is an error answer after RFC 9457. It is an error.
type Problem struct {
	Type      string            `json:"type"` // "about:blank": Code says which it is
	Title     string            `json:"title"`
	Status    int               `json:"status"`
	Detail    string            `json:"detail,omitzero"`
	Code      string            `json:"code"` // of a closed set, for programs; unexpected_answer = not one of Keytrail's
	RequestID string            `json:"request_id,omitzero"`
	Errors    input.FieldErrors `json:"errors,omitempty"` // one for each bad field

	RetryAfter time.Duration `json:"-"` // when asking again may help; 0 = the answer does not say
}

// Error returns code and detail.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// CodeUnexpected is of an answer that is not Keytrail's: of a proxy, say.
const CodeUnexpected = "unexpected_answer"

// maxProblem bounds what is read of an error answer, in bytes.
const maxProblem = 1 << 20

// problem reads an error answer; one that is no problem document becomes one.
func problem(resp *http.Response) *Problem {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	p := new(Problem)
	if json.Unmarshal(b, p) != nil || p.Code == "" {
		p = &Problem{Type: "about:blank", Title: http.StatusText(resp.StatusCode), Code: CodeUnexpected, Detail: fmt.Sprintf("HTTP %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))}
		if resp.StatusCode/100 == 3 {
			p.Detail += "; redirects are not followed: name the address that it points to"
		}
	}
	p.Status = resp.StatusCode
	p.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	return p
}

// hide removes a secret that the answer repeats: what answers may be no Keytrail.
func (p *Problem) hide(s events.Secret) {
	if s.IsZero() {
		return
	}
	for _, text := range []*string{&p.Type, &p.Title, &p.Detail, &p.Code, &p.RequestID} {
		*text = strings.ReplaceAll(*text, s.Reveal(), s.String())
	}
	for i := range p.Errors {
		for _, text := range []*string{&p.Errors[i].Field, &p.Errors[i].Code, &p.Errors[i].Message} {
			*text = strings.ReplaceAll(*text, s.Reveal(), s.String())
		}
	}
}

// maxRetryAfter is the longest time that is taken for one.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads the header's seconds, or its date (RFC 9110, 10.2.3); 0 if it says
// neither.
func retryAfter(v string, now time.Time) time.Duration {
	d := time.Duration(0)
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(v); err == nil {
		d = max(at.Sub(now), 0)
	}
	return min(d, maxRetryAfter)
}
