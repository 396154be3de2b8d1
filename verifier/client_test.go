package verifier

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/events"
)

// The client's address, in each form that proxies write it in.
func TestAddressOfTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		const proxy = "192.0.2.1"
		for _, c := range []struct {
			peer      string
			forFor    []string // X-Forwarded-For
			forwarded []string
			want      string // "" = not known
			doubtful  bool   // not known to an allowlist, whatever the record says
		}{
			{proxy, nil, nil, "", false}, // never the proxy's own
			{"203.0.113.9", nil, nil, "203.0.113.9", false},
			{"203.0.113.9", []string{"203.0.113.7"}, []string{"for=203.0.113.7"}, "203.0.113.9", false},
			{"", []string{"203.0.113.7"}, nil, "", false},

			{proxy, []string{"203.0.113.7"}, nil, "203.0.113.7", false},
			{proxy, []string{"203.0.113.7:4711"}, nil, "203.0.113.7", false},
			{proxy, []string{`"203.0.113.7:4711"`}, nil, "203.0.113.7", false},
			{proxy, []string{"\t203.0.113.7 "}, nil, "203.0.113.7", false},
			{proxy, []string{"::ffff:203.0.113.7"}, nil, "203.0.113.7", false},
			{proxy, []string{"[::ffff:203.0.113.7]:443"}, nil, "203.0.113.7", false},
			{proxy, []string{"2001:db8::1"}, nil, "2001:db8::1", false},
			{proxy, []string{"[2001:db8::1]"}, nil, "2001:db8::1", false},
			{proxy, []string{"[2001:db8::1]:443"}, nil, "2001:db8::1", false},
			{proxy, []string{`"[2001:db8::1]:443"`}, nil, "2001:db8::1", false},
			{proxy, []string{"2001:db8::1%eth0"}, nil, "2001:db8::1", false},
			{proxy, []string{"198.51.100.9, 203.0.113.7:1, [::ffff:10.1.2.3]:2"}, nil, "203.0.113.7", false},
			{proxy, []string{"10.1.2.3", "10.1.2.4"}, nil, "10.1.2.3", false}, // a trusted hop says so
			{proxy, []string{""}, nil, "", false},
			{proxy, []string{"203.0.113.7,"}, nil, "", false},
			{proxy, []string{"unknown"}, nil, "", false},
			{proxy, []string{"203.0.113.7:port"}, nil, "", false},
			{proxy, []string{"203.0.113.7:70000"}, nil, "", false},
			{proxy, []string{"[203.0.113.7]"}, nil, "", false},
			{proxy, []string{"[2001:db8::1"}, nil, "", false},
			{proxy, []string{"2001:db8::1]:443"}, nil, "", false},
			{proxy, []string{`"203.0.113.7`}, nil, "", false},
			{proxy, []string{"0.0.0.0"}, nil, "", false},
			{proxy, []string{"203.0.113.007"}, nil, "", false},

			{proxy, nil, []string{"for=203.0.113.7"}, "203.0.113.7", false},
			{proxy, nil, []string{`For="203.0.113.7:4711"; proto=https;by=192.0.2.1`}, "203.0.113.7", false},
			{proxy, nil, []string{`for="[2001:db8:cafe::17]:4711"`}, "2001:db8:cafe::17", false},
			{proxy, nil, []string{`for=[2001:db8::1]:443`}, "2001:db8::1", false}, // without the quotes that it needs
			{proxy, nil, []string{"for=198.51.100.9, for=203.0.113.7", "for=10.1.2.3"}, "203.0.113.7", false},
			{proxy, nil, []string{`for=203.0.113.7;host="api, for=198.51.100.9;x"`}, "203.0.113.7", false}, // a client's Host, repeated
			{proxy, nil, []string{`for=203.0.113.7;host="a\", for=198.51.100.9;x=\"b"`}, "203.0.113.7", false},
			{proxy, nil, []string{"for=203.0.113.7,"}, "203.0.113.7", false}, // empty elements of a list count as none
			{proxy, nil, []string{"for=203.0.113.7, proto=https"}, "", false},
			{proxy, nil, []string{"for=unknown"}, "", false},
			{proxy, nil, []string{"for=_hidden"}, "", false},
			{proxy, nil, []string{"proto=https"}, "", false},
			{proxy, nil, []string{""}, "", true},
			{proxy, nil, []string{"203.0.113.7"}, "", true},
			{proxy, nil, []string{"for=203.0.113.7;for=203.0.113.7"}, "", true},
			{proxy, nil, []string{`for="203.0.113.7`}, "", true},
			{proxy, nil, []string{`for="198.51.100.9`, `for=203.0.113.7;host="x"`}, "", true}, // the client's quote does not end
			{proxy, nil, []string{"for = 203.0.113.7"}, "", true},
			{proxy, nil, []string{"for=203.0.113.7 198.51.100.9"}, "", true},

			{proxy, []string{"203.0.113.7"}, []string{"for=203.0.113.7"}, "203.0.113.7", false},
			{proxy, []string{"203.0.113.7:1, 10.1.2.3"}, []string{`for="203.0.113.7"`}, "203.0.113.7", false},
			{proxy, []string{"203.0.113.7"}, []string{"for=198.51.100.9"}, "203.0.113.7", true},
			{proxy, []string{"203.0.113.7"}, []string{"for=unknown"}, "203.0.113.7", true},
			{proxy, []string{"203.0.113.7"}, []string{"nonsense"}, "203.0.113.7", true},
			{proxy, []string{"unknown"}, []string{"for=203.0.113.7"}, "", true},
		} {
			peer, _ := netip.ParseAddr(c.peer)
			header := http.Header{"X-Forwarded-For": c.forFor, "Forwarded": c.forwarded}
			var req Request
			w.node.origin(&Ask{Peer: peer, Header: header.Values}, &req)
			want, _ := netip.ParseAddr(c.want)
			if req.IP != want || req.Doubtful != c.doubtful {
				t.Errorf("peer %q, X-Forwarded-For %q, Forwarded %q: %s, doubtful %t; want %s, %t", c.peer, c.forFor, c.forwarded, req.IP, req.Doubtful, want, c.doubtful)
			}
			if c.doubtful {
				want = netip.Addr{}
			}
			if req.addr() != want {
				t.Errorf("peer %q, %q, %q: an allowlist is asked about %s", c.peer, c.forFor, c.forwarded, req.addr())
			}
		}
	})
}

// A key with an allowlist is refused where the address cannot be told, a key
// without one is not, and the record has what the proxy said.
func TestAddressThatCannotBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		proxy := netip.MustParseAddr("192.0.2.1")
		for _, h := range []http.Header{
			{},
			{"X-Forwarded-For": {"nobody"}},
			{"X-Forwarded-For": {inside.String()}, "Forwarded": {"for=198.51.100.9"}},
			{"X-Forwarded-For": {"198.51.100.9"}, "Forwarded": {"for=" + inside.String()}},
		} {
			for word, want := range map[string]events.Reason{"office": events.ReasonAddressNotAllowed, "plain": events.ReasonOK} {
				header := h.Clone()
				header.Set("Authorization", "Bearer "+secretOf(word))
				ans := w.node.Answer(t.Context(), &Ask{Keyspace: scribe, Peer: proxy, Header: header.Values})
				if ans.Decision.Reason != want {
					t.Errorf("%s with %v: %s, want %s", word, h, ans.Decision.Reason, want)
				}
			}
		}
	})
}

// Operators' endpoints ask the same about an operator behind a proxy.
func TestOperatorsAddressThatCannotBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		listed, free := "kt_"+strings.Repeat("b", 40), "kt_"+strings.Repeat("c", 40)
		for secret, list := range map[string][]netip.Prefix{listed: {netip.MustParsePrefix("192.0.2.1/32"), office}, free: nil} {
			w.keyIn(events.Builtin, events.RootTenant, secret, func(c *events.KeyCreated) {
				c.KeyType, c.Environment, c.Scopes, c.Allowlist = "operator", "", []string{events.ScopeAuditRead}, list
			})
		}
		for _, c := range []struct {
			secret, forFor string
			status         int
			ip             netip.Addr
		}{
			{listed, "", 403, netip.Addr{}}, // the list has the proxy's own address, and it is not the client's
			{listed, inside.String(), 0, inside},
			{free, "", 0, netip.Addr{}},
		} {
			r := request("GET", "/", "192.0.2.1:4711")
			r.Header.Set("Authorization", "Bearer "+c.secret)
			if c.forFor != "" {
				r.Header.Set("X-Forwarded-For", c.forFor)
			}
			caller, err := w.node.Authenticate(r, "", "GET /v1/keys")
			if got := statusOfError(err); got != c.status || caller.Principal.IP != c.ip {
				t.Errorf("%q: status %d, address %s; want %d, %s", c.forFor, got, caller.Principal.IP, c.status, c.ip)
			}
		}
	})
}

// Whatever stands in the headers, an address that counts is one that a header
// holds, and what a trusted proxy appends decides over what came before.
func FuzzOrigin(f *testing.F) {
	w := endpointsWorld(f, nil)
	f.Cleanup(func() { w.stop() })
	f.Add("203.0.113.7, [2001:db8::1]:443", `for="[2001:db8::1]:443";proto=https, for=_x`)
	f.Add(`"1.2.3.4:5"`, `for="a\",b";;host=x`)
	f.Add(",", `,;="`)
	proxy := netip.MustParseAddr("192.0.2.1")
	f.Fuzz(func(t *testing.T, chain, given string) {
		ask := func(h http.Header) *Request {
			req := new(Request)
			w.node.origin(&Ask{Peer: proxy, Secure: true, Header: h.Values}, req)
			return req
		}
		req := ask(http.Header{"X-Forwarded-For": {chain}, "Forwarded": {given}})
		if a := req.addr(); a.IsValid() && (a != ask(http.Header{"X-Forwarded-For": {chain}}).IP || a != ask(http.Header{"Forwarded": {given}}).IP) {
			t.Fatalf("%q and %q agree on %s, which neither says alone", chain, given, a)
		}
		// The proxy appends the client's true address.
		if a := ask(http.Header{"X-Forwarded-For": {chain, inside.String()}}).addr(); a != inside {
			t.Fatalf("%q hides what the proxy appends: %s", chain, a)
		}
		if a := ask(http.Header{"Forwarded": {given, "for=" + inside.String()}}).addr(); a.IsValid() && a != inside {
			t.Fatalf("%q turns what the proxy appends into %s", given, a)
		}
	})
}
