package verifier

import (
	"net/netip"
	"slices"
	"strings"
)

// origin fills in the client's address and whether its request came without TLS.
// Both are the peer's own, unless the peer is a trusted proxy: then it tells. If
// it does not, the address is unknown, and never the proxy's own. Of two headers
// that disagree one is the client's own: X-Forwarded-For goes on the record, and
// the address counts as unknown.
func (n *Node) origin(ask *Ask, req *Request) {
	req.Insecure = !ask.Secure
	if !n.trusts(ask.Peer) {
		req.IP = ask.Peer
		return
	}
	protos := ask.Header("X-Forwarded-Proto")
	chain, given := ask.Header("X-Forwarded-For"), ask.Header("Forwarded")
	if len(chain) > 0 {
		hops := chain
		if len(chain) > 1 || strings.Contains(chain[0], ",") {
			hops = strings.Split(strings.Join(chain, ","), ",")
		}
		req.IP = n.clientOf(hops)
	}
	if len(given) > 0 {
		hops, schemes, ok := forwarded(strings.Join(given, ","))
		if !ok {
			req.Doubtful, req.Insecure = true, true
			return
		}
		ip := n.clientOf(hops)
		if len(chain) == 0 {
			req.IP = ip
		}
		req.Doubtful = req.IP != ip
		protos = slices.Concat(protos, schemes)
	}
	if len(protos) > 0 {
		req.Insecure = !HTTPS(protos)
	}
}

// HTTPS reports whether the values of X-Forwarded-Proto name https and nothing
// else: one hop without TLS is enough to read a key.
func HTTPS(values []string) bool {
	for _, v := range values {
		for proto := range strings.SplitSeq(v, ",") {
			if !strings.EqualFold(strings.Trim(proto, " \t"), "https") {
				return false
			}
		}
	}
	return len(values) > 0
}

// clientOf returns the rightmost address of hops that is not of a trusted proxy;
// of trusted ones alone, the leftmost. An entry that cannot be read makes the
// address unknown.
func (n *Node) clientOf(hops []string) (ip netip.Addr) {
	for _, hop := range slices.Backward(hops) {
		var ok bool
		if ip, ok = hopAddress(hop); !ok || !n.trusts(ip) {
			return ip
		}
	}
	return ip
}

func (n *Node) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(n.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// hopAddress reads an address as proxies write it: with or without a port,
// brackets around IPv6, quotes around all of it. The unspecified address is
// nobody's.
func hopAddress(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	if n := len(s); n > 1 && s[0] == '"' && s[n-1] == '"' {
		s = s[1 : n-1]
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			s += ":0"
		}
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	if a = a.Unmap().WithZone(""); a.IsUnspecified() {
		return netip.Addr{}, false
	}
	return a, true
}

// forwarded reads the values of Forwarded (RFC 7239), joined by commas: for of
// each element ("" where it has none) and each proto. It is not ok where the field
// does not follow its grammar. Commas and semicolons in quotes separate nothing: a
// proxy may repeat a client's Host there.
func forwarded(s string) (hops, protos []string, ok bool) {
	elements := 0
	for {
		hop, seen := "", map[string]bool{}
		for s = skipSpace(s); s != "" && s[0] != ','; s = skipSpace(s) {
			if s[0] == ';' {
				s = s[1:]
				continue
			}
			name := s[:tokenLen(s)]
			if name == "" || len(s) == len(name) || s[len(name)] != '=' {
				return nil, nil, false
			}
			value, rest, valid := tokenOrQuoted(s[len(name)+1:])
			name, s = strings.ToLower(name), skipSpace(rest)
			if !valid || seen[name] || s != "" && s[0] != ';' && s[0] != ',' {
				return nil, nil, false
			}
			seen[name] = true
			switch name {
			case "for":
				hop = value
			case "proto":
				protos = append(protos, value)
			}
		}
		if len(seen) > 0 { // an empty element of a list says nothing
			hops, elements = append(hops, hop), elements+1
		}
		if s == "" {
			return hops, protos, elements > 0
		}
		s = s[1:]
	}
}

func skipSpace(s string) string { return strings.TrimLeft(s, " \t") }

// tokenLen returns how many bytes at the start of s are a token (RFC 9110, 5.6.2).
func tokenLen(s string) int {
	for i := range len(s) {
		c := s[i]
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return i
		}
	}
	return len(s)
}

// tokenOrQuoted cuts a value off s: a quoted string (RFC 9110, 5.6.4), or a token.
// Addresses with a port or brackets are taken without quotes too, as some proxies
// write them.
func tokenOrQuoted(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		n := 0
		for n < len(s) && (strings.IndexByte("[]:", s[n]) >= 0 || tokenLen(s[n:n+1]) == 1) {
			n++
		}
		return s[:n], s[n:], n > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
