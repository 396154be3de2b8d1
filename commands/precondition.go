package commands

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// The headers of preconditions (RFC 9110, section 13.1).
const (
	ifMatchHeader     = "If-Match"
	ifNoneMatchHeader = "If-None-Match"
)

// Precondition is what a request demands of the present revision of the resource
// that it writes. It is checked against the history that the command is decided
// on, so nobody undoes a change that they have not seen. The zero Precondition
// demands nothing.
type Precondition struct {
	match, noneMatch *entityTags // nil: the header is not there
}

// entityTags are the tags of one header.
type entityTags struct {
	any  bool // "*": any that there is
	tags []entityTag
}

type entityTag struct {
	opaque string // without its quotes
	weak   bool
}

// IfRev returns the precondition that the resource stands at rev.
func IfRev(rev uint64) Precondition {
	return Precondition{match: &entityTags{tags: []entityTag{{opaque: opaque(rev)}}}}
}

// revised is a state with revisions: of a key, a role, a tenant or a keyspace.
type revised interface {
	Exists() bool
	Revision() uint64
}

func opaque(rev uint64) string { return strconv.FormatUint(rev, 10) }

// etag returns the entity tag of a resource at rev. It is a strong one: whatever
// is written to a resource raises its revision.
func etag(rev uint64) string { return `"` + opaque(rev) + `"` }

// check returns nil when s is as demanded, else a refusal that says how it is.
func (p *Precondition) check(s revised) error {
	var header string
	switch {
	case p.match != nil && !p.match.hold(s, false):
		header = ifMatchHeader
	case p.noneMatch != nil && p.noneMatch.hold(s, true):
		header = ifNoneMatchHeader
	default:
		return nil
	}
	if !s.Exists() {
		return refuse(CodePrecondition, header, "%s asks for a revision, and there is no such resource now", header)
	}
	r := refuse(CodePrecondition, header, "the resource stands at rev %d, which is not what %s asks for: somebody changed it; read it and decide again", s.Revision(), header)
	r.etag = etag(s.Revision())
	return r
}

// hold reports whether one of the tags is that of s. A weak tag equals no strong
// one in the strong comparison (RFC 9110, section 8.8.3.2).
func (t *entityTags) hold(s revised, weakly bool) bool {
	return s.Exists() && (t.any || slices.ContainsFunc(t.tags, func(e entityTag) bool {
		return e.opaque == opaque(s.Revision()) && (weakly || !e.weak)
	}))
}

// precondition reads the headers of a write.
func precondition(h http.Header) (p Precondition, err error) {
	for name, to := range map[string]**entityTags{ifMatchHeader: &p.match, ifNoneMatchHeader: &p.noneMatch} {
		values := h.Values(name)
		if len(values) == 0 {
			continue
		}
		tags, ok := parseEntityTags(strings.Join(values, ","))
		if !ok {
			return p, badHeader(name, `want the ETag of an answer, as "3" with its quotes, or *`)
		}
		*to = tags
	}
	return p, nil
}

// noPrecondition refuses preconditions where nothing that there is is written: an
// answer that passed over them would look as if they held.
func noPrecondition(h http.Header) error {
	for _, name := range []string{ifMatchHeader, ifNoneMatchHeader} {
		if len(h.Values(name)) > 0 {
			return badHeader(name, "this endpoint makes or ends other resources and has no revision: leave the header out")
		}
	}
	return nil
}

func badHeader(name, message string) error {
	p := api.Errorf(http.StatusBadRequest, "bad_header", "%s: %s", name, message)
	p.Errors = input.FieldErrors{{Field: name, Code: "invalid", Message: message}}
	return p
}

// maxEntityTags bounds the tags of one header.
const maxEntityTags = 100

// parseEntityTags reads "*" or a list of entity tags, at least one (RFC 9110,
// sections 8.8.3 and 5.6.1: elements of a list may be empty).
func parseEntityTags(s string) (*entityTags, bool) {
	space := func() { s = strings.TrimLeft(s, " \t") }
	if strings.Trim(s, " \t") == "*" {
		return &entityTags{any: true}, true
	}
	var t entityTags
	for {
		space()
		var e entityTag
		if rest, ok := strings.CutPrefix(s, "W/"); ok {
			e.weak, s = true, rest
		}
		if rest, ok := strings.CutPrefix(s, `"`); ok {
			end := strings.IndexByte(rest, '"')
			if end < 0 || strings.ContainsFunc(rest[:end], func(r rune) bool { return r <= ' ' || r == 0x7f }) || len(t.tags) == maxEntityTags {
				return nil, false
			}
			e.opaque, s = rest[:end], rest[end+1:]
			t.tags = append(t.tags, e)
		} else if e.weak {
			return nil, false
		}
		space()
		if s == "" {
			return &t, len(t.tags) > 0
		}
		if s[0] != ',' {
			return nil, false
		}
		s = s[1:]
	}
}
