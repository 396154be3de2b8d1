package verifier

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// maxSegment is the largest n of {n}.
const maxSegment = 32

// placeholder reads {n} as the id of a resource: segment n of the path of the client's
// request, counted from 1. It is for gateways whose configuration has no variables.
func placeholder(id string) (n int, ok bool) {
	digits, opened := strings.CutPrefix(id, "{")
	digits, closed := strings.CutSuffix(digits, "}")
	if !opened || !closed {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n > 0 && n <= maxSegment && strconv.Itoa(n) == digits
}

// unreadable stands for an id that no resource of Keytrail's can have, as in the
// configurations of gateways that have variables: keys that are restricted do not reach it.
const unreadable = "unreadable"

// fill puts segment n of the path into a.Resource. Where there is none, or gateway and
// upstream may count the segments differently, the request is refused like one that is
// not listed (keyspace.ScopeUnlisted).
func (a *Ask) fill(n int, f *input.FieldErrors) {
	named := events.Resource{Kind: a.Resource.Kind, ID: "x"}
	if err := named.Validate(); err != nil {
		f.Add("resource", "invalid", err.Error())
		return
	}
	if a.Path == "" {
		f.Add("resource", "invalid", "{"+strconv.Itoa(n)+"} stands for a segment of the path, and a trusted proxy must send that in X-Forwarded-Uri")
		return
	}
	id, ok := segment(a.Path, n)
	if !ok {
		a.Scope, a.Resource = keyspace.ScopeUnlisted, events.Resource{}
		return
	}
	if named.ID = id; named.Validate() != nil {
		named.ID = unreadable
	}
	a.Resource = named
}

// segment returns segment n of the path of uri, decoded; not ok without one, or if another
// reader of the path may find another one there.
func segment(uri string, n int) (id string, ok bool) {
	path, _, _ := strings.Cut(uri, "?")
	path, rooted := strings.CutPrefix(path, "/")
	lower := strings.ToLower(path)
	if !rooted || strings.ContainsAny(path, `\;#`) || strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c") || strings.Contains(lower, "%2e") {
		return "", false
	}
	segments := strings.Split(path, "/")
	if last := len(segments) - 1; segments[last] == "" {
		segments = segments[:last]
	}
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return "", false
		}
	}
	if n > len(segments) {
		return "", false
	}
	id, err := url.PathUnescape(segments[n-1])
	return id, err == nil
}
