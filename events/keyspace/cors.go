package keyspace

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
)

// CORS says which web pages may call the API: pages of these origins may send keys, and
// may read a refusal. What the API itself answers is the API's to open or close.
type CORS struct {
	// Origins are the pages' origins as browsers send them ("https://app.example.com"),
	// or AnyOrigin alone. None: no page may.
	Origins []string `json:"origins,omitempty"`
}

// AnyOrigin in CORS.Origins stands for all pages.
const AnyOrigin = "*"

// MaxOrigins bounds CORS.Origins.
const MaxOrigins = 100

// Allows returns what Access-Control-Allow-Origin says to a page of origin: AnyOrigin,
// the origin, or "" when pages of the origin may not call.
func (c *CORS) Allows(origin string) string {
	switch {
	case origin == "":
		return ""
	case slices.Contains(c.Origins, AnyOrigin):
		return AnyOrigin
	case slices.Contains(c.Origins, origin):
		return origin
	}
	return ""
}

// validate reports every fault of the origins, paths relative to c.
func (c *CORS) validate() input.FieldErrors {
	var f input.FieldErrors
	if len(c.Origins) > MaxOrigins {
		f.Add("origins", "too_many", fmt.Sprintf("want at most %d", MaxOrigins))
		return f
	}
	for i, o := range c.Origins {
		path := fmt.Sprintf("origins[%d]", i)
		switch {
		case slices.Contains(c.Origins[:i], o):
			f.Add(path, "duplicate", fmt.Sprintf("origin %s stands twice", input.Echo(o)))
		case o == AnyOrigin && len(c.Origins) > 1:
			f.Add(path, "conflict", "want * alone: it stands for all pages")
		case o != AnyOrigin && !isOrigin(o):
			f.Add(path, "invalid", "want an origin as browsers send it, as https://app.example.com: in lower case, without a path, and without the scheme's usual port; or * alone")
		}
	}
	return f
}

var originRE = regexp.MustCompile(`^([a-z][a-z0-9+.-]{0,31})://(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(:[1-9][0-9]{0,4})?$`)

// isOrigin reports whether s is an origin in the one form in which browsers send it
// (RFC 6454, section 6.2): another would never match.
func isOrigin(s string) bool {
	m := originRE.FindStringSubmatch(s)
	if m == nil {
		return false
	}
	scheme, host, port := m[1], m[2], m[3]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !a.Is6() || "["+a.String()+"]" != host {
			return false
		}
	}
	if port == "" {
		return true
	}
	n, err := strconv.Atoi(port[1:])
	return err == nil && n <= 65535 && !(scheme == "http" && n == 80) && !(scheme == "https" && n == 443)
}
