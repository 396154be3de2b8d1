package events_test

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// parsers are all wire values that guard themselves: each reads what it prints.
var parsers = map[string]func(string) (fmt.Stringer, error){
	"key id":     func(s string) (fmt.Stringer, error) { return events.ParseKeyID(s) },
	"event id":   func(s string) (fmt.Stringer, error) { return events.ParseEventID(s) },
	"request id": func(s string) (fmt.Stringer, error) { return events.ParseRequestID(s) },
	"log id":     func(s string) (fmt.Stringer, error) { return events.ParseLogID(s) },
	"time":       func(s string) (fmt.Stringer, error) { return events.ParseTime(s) },
	"position":   func(s string) (fmt.Stringer, error) { return events.ParsePosition(s) },
	"use id":     func(s string) (fmt.Stringer, error) { return events.ParseUseID(s) },
	"reason":     func(s string) (fmt.Stringer, error) { return events.ParseReason(s) },
	"subject": func(s string) (fmt.Stringer, error) {
		a, err := events.ParseSubject(s)
		return subject{a}, err
	},
	"hash": func(s string) (fmt.Stringer, error) {
		var h events.Hash
		return &h, h.UnmarshalText([]byte(s))
	},
	"digest": func(s string) (fmt.Stringer, error) {
		var d events.Digest
		err := d.UnmarshalText([]byte(s))
		return digest{d}, err
	},
}

type subject struct{ events.Aggregate }

func (s subject) String() string { return s.Subject() }

type digest struct{ d events.Digest }

func (d digest) String() string { b, _ := d.d.MarshalText(); return string(b) }

var (
	ulidText = "01KE9Q5V00000000000000000A"
	hex64    = strings.Repeat("0123456789abcdef", 4)
	token    = events.Position{Log: must(events.ParseLogID(ulidText)), Seq: 42}.String()
)

func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

func TestParse(t *testing.T) {
	const life = "kt.life."
	for _, c := range []struct {
		parser string
		good   []string
		bad    []string
	}{
		{"key id", []string{"key_" + ulidText, "key_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"},
			[]string{"", "key_", ulidText, "key_" + strings.ToLower(ulidText), "KEY_" + ulidText, "key_" + ulidText + "0", "key_" + ulidText[1:],
				"key_8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "key_01KE9Q5V0000000000000000IL", "key_00000000000000000000000000", " key_" + ulidText, "key_" + ulidText + "\n"}},
		{"event id", []string{ulidText}, []string{"", strings.ToLower(ulidText), ulidText + " ", "8" + ulidText[1:], "01KE9Q5V0000000000000000O0", "é" + ulidText[2:]}},
		{"request id", []string{"req_" + ulidText, "req_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"},
			[]string{"", "req_", ulidText, "req_1", "req_" + strings.ToLower(ulidText), "key_" + ulidText, "req_8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "req_00000000000000000000000000"}},
		{"log id", []string{ulidText}, []string{"", strings.ToLower(ulidText), ulidText[1:]}},
		{"time", []string{"2026-01-06T10:00:00.000Z", "1970-01-01T00:00:00.001Z", "9999-12-31T23:59:59.999Z", "2024-02-29T23:59:59.999Z"},
			[]string{"", "2026-01-06T10:00:00Z", "2026-01-06T10:00:00.00Z", "2026-01-06T10:00:00.0000Z", "2026-01-06T10:00:00,000Z", "2026-01-06t10:00:00.000z",
				"2026-01-06T10:00:00.000+00:00", "2026-01-06T11:00:00.000+01:00", "2026-1-6T10:00:00.000Z", "2026-02-30T10:00:00.000Z", "2026-01-06T24:00:00.000Z",
				"2026-01-06T10:00:60.000Z", "1970-01-01T00:00:00.000Z", "1969-12-31T23:59:59.999Z", "0000-01-01T00:00:00.000Z", "10000-01-01T00:00:00.000Z", "2026-01-06 10:00:00.000Z", "1767693600000"}},
		{"position", []string{token, events.Position{}.String(), events.Position{Seq: 1<<64 - 1}.String()},
			[]string{"", token[1:], token[:49], token + "A", token + "=", token[:20] + "\n" + token[20:], token[:20] + "\r" + token[21:], " " + token, strings.ToUpper(token), "42"}},
		{"use id", []string{"n1/1767693600000000/1", "n1/0/0", "_/-5/18446744073709551615"},
			[]string{"", "n1", "n1/1", "n1/1/1/1", "n1/01/1", "n1/+1/1", "n1/1/-1", "n1/1/01", "n1/1/18446744073709551616", "-n/1/1", "a.b/1/1", "/1/1", "n1/1/1 ", "n1/1/"}},
		{"reason", []string{"ok", "key_missing", "key_malformed", "key_unknown", "key_revoked", "key_expired", "key_disabled", "address_not_allowed", "scope_missing", "resource_not_allowed", "rate_limited", "verifier_stale", "https_required", "beyond_own_power"},
			[]string{"", "OK", "reason_15", "none", "ok "}},
		{"subject", []string{life + "shop.acme.key.key_" + ulidText, life + "shop.acme.role.dev", life + "shop.-.keyspace.shop", "kt.read.key_" + ulidText, "kt.read.ctl-1", life + "a-b.A_1.role._", life + "shop.acme.tenant.acme"},
			[]string{"", life, "kt.life", "shop.acme.role.dev", "kt.use.shop.acme.role.dev", life + "shop.acme.role", life + "shop.acme.role.dev.x", life + "Shop.acme.role.dev",
				life + "shop.-.role.dev", life + "shop..role.dev", life + "shop.*.role.dev", life + "shop.acme.role.>", life + "shop.acme.key.dev", life + "shop.acme.keyspace.shop", life + "shop.-.keyspace.other",
				life + "shop.-.reader.key_" + ulidText, life + "keytrail.-.reader.key_" + ulidText, "kt.read.", "kt.read.a.b", "kt.read.*", "kt.read.keytrail.-.reader.bob", life + "shop.acme.tenant.globex", life + "shop.-.tenant.-", life + "shop.-.tenant.acme", life + "keytrail.acme.reader.bob", life + "shop.acme.thing.x", life + "shop.ac me.role.dev", life + "shop.acme.role.dev\n", " " + life + "shop.acme.role.dev"}},
		{"hash", []string{hex64}, []string{"", strings.ToUpper(hex64), hex64[1:], hex64 + "0", "g" + hex64[1:], " " + hex64[1:]}},
		{"digest", []string{hex64}, []string{"", strings.ToUpper(hex64), hex64[2:], "sha256:" + hex64[:57]}},
	} {
		parse := parsers[c.parser]
		for _, s := range c.good {
			if v, err := parse(s); err != nil || v.String() != s {
				t.Errorf("%s: %q reads as %v, %v", c.parser, s, v, err)
			}
		}
		for _, s := range c.bad {
			if v, err := parse(s); err == nil {
				t.Errorf("%s: %q is accepted, as %v", c.parser, s, v)
			} else if len(err.Error()) < 20 || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: the error of %q helps nobody: %q", c.parser, s, err)
			}
		}
	}
}

// FuzzParse: whatever a parser accepts, String prints back.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "key_" + ulidText, ulidText, "2026-01-06T10:00:00.000Z", token, "n1/5/7", "ok", "kt.life.shop.acme.key.key_" + ulidText, "kt.life.shop.-.keyspace.shop", "kt.read.bob", hex64} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for name, parse := range parsers {
			if v, err := parse(s); err == nil && v.String() != s {
				t.Errorf("%s: %q reads, and prints as %q", name, s, v)
			}
		}
	})
}

func TestTextMarshalersAgreeWithParse(t *testing.T) {
	for name, v := range map[string]struct {
		in  encoding.TextMarshaler
		out interface {
			encoding.TextUnmarshaler
			encoding.TextMarshaler
		}
	}{
		"key id":   {must(events.ParseKeyID("key_" + ulidText)), new(events.KeyID)},
		"event id": {must(events.ParseEventID(ulidText)), new(events.EventID)},
		"log id":   {must(events.ParseLogID(ulidText)), new(events.LogID)},
		"time":     {events.Time(1), new(events.Time)},
		"position": {events.Position{Seq: 7}, new(events.Position)},
		"reason":   {events.ReasonScopeMissing, new(events.Reason)},
		"hash":     {events.Hash{1}, new(events.Hash)},
		"digest":   {events.Digest{1}, new(events.Digest)},
	} {
		text, err := v.in.MarshalText()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := v.out.UnmarshalText(text); err != nil {
			t.Errorf("%s: %q does not read back: %v", name, text, err)
		}
		if again, _ := v.out.MarshalText(); !bytes.Equal(again, text) {
			t.Errorf("%s: %q reads back as %q", name, text, again)
		}
		if err := v.out.UnmarshalText(append(text, 'x')); err == nil {
			t.Errorf("%s: %q is accepted", name, append(text, 'x'))
		}
	}
	for _, bad := range []events.Time{0, -1, 253402300800000} {
		if text, err := bad.MarshalText(); err == nil {
			t.Errorf("time %d marshals as %q", bad, text)
		}
	}
}

func TestTime(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"2026-01-06T10:00:00Z", "2026-01-06T10:00:00.000Z"},
		{"2026-01-06T11:00:00.1239+01:00", "2026-01-06T10:00:00.123Z"},
		{"2026-01-06T10:00:00.999999999Z", "2026-01-06T10:00:00.999Z"},
	} {
		if got, err := events.ParseTimeLenient(c.in); err != nil || got.String() != c.want {
			t.Errorf("%q reads as %q, %v, want %q", c.in, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "tomorrow", "2026-01-06", "1767693600", "1970-01-01T00:00:00.0009Z", "1969-01-01T00:00:00Z", "0000-00-00T00:00:00Z"} {
		if got, err := events.ParseTimeLenient(bad); err == nil {
			t.Errorf("%q reads as %q", bad, got)
		}
	}
	at := events.At(time.Date(2026, 1, 6, 10, 0, 0, 1_999_999, time.FixedZone("", 3600)))
	if got := at.Add(1500 * time.Microsecond).String(); got != "2026-01-06T09:00:00.002Z" {
		t.Errorf("truncation and addition give %s", got)
	}
	if at.Std().Location() != time.UTC || events.At(at.Std()) != at {
		t.Errorf("Std does not round trip: %s", at.Std())
	}
}

// Positions of another log are told apart by their log; every truncated token
// and every flipped bit is refused.
func TestPosition(t *testing.T) {
	p := events.Position{Log: must(events.ParseLogID(ulidText)), Seq: 1 << 40, History: events.NewFingerprint(events.Hash{1, 2, 3, 4, 5}, events.Hash{6, 7, 8, 9, 10})}
	tok := p.String()
	if got := must(events.ParsePosition(tok)); got != p || len(tok) != 50 || p.History != (events.Fingerprint{1, 2, 3, 4, 6, 7, 8, 9}) {
		t.Fatalf("%q reads as %v", tok, got)
	}
	foreign := p
	foreign.Log[15] ^= 1
	if got := must(events.ParsePosition(foreign.String())); got.Log == p.Log || got == p {
		t.Errorf("a token of another log reads as ours")
	}
	for n := range tok {
		if _, err := events.ParsePosition(tok[:n]); err == nil {
			t.Errorf("%d of %d characters are accepted", n, len(tok))
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(tok)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(raw) * 8 {
		b := bytes.Clone(raw)
		b[bit/8] ^= 1 << (bit % 8)
		if got, err := events.ParsePosition(base64.RawURLEncoding.EncodeToString(b)); err == nil {
			t.Errorf("with bit %d flipped it reads as %v", bit, got)
		}
	}
	if _, err := events.ParsePosition(base64.URLEncoding.EncodeToString(raw)); err == nil {
		t.Error("padding is accepted")
	}
	// The last character carries spare bits, which must be zero.
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		if s := tok[:49] + string(c); s != tok {
			if got, err := events.ParsePosition(s); err == nil {
				t.Errorf("%q and %q both read, as %v", s, tok, got)
			}
		}
	}
}

func TestIDGrammars(t *testing.T) {
	for _, c := range []struct {
		name     string
		validate func(string) error
		good     []string
		bad      []string
	}{
		{"keyspace", func(s string) error { return events.KeyspaceID(s).Validate() },
			[]string{"a", "a-", "shop-2", strings.Repeat("a", 63)}, []string{"", "A", "1a", "-a", "a_b", "a.b", "a b", "ä", "a\n", strings.Repeat("a", 64)}},
		{"tenant", func(s string) error { return events.TenantID(s).Validate() },
			[]string{"a", "_", "9", "A-_9", strings.Repeat("a", 64)}, []string{"", "-", "-a", "a.b", "*", ">", "a b", "é", "a\n", strings.Repeat("a", 65)}},
		{"role", func(s string) error { return events.RoleID(s).Validate() }, []string{"dev"}, []string{"", "-", "a.b", strings.Repeat("a", 65)}},
		{"node", func(s string) error { return events.NodeID(s).Validate() }, []string{"n1"}, []string{"", "-", "a.b", "a/b"}},
		{"scope", keyspace.ValidScope, []string{"read", "a:b/c.*", "0", strings.Repeat("s", 100)}, []string{"", "*", ":a", "a b", "a,b", "é", "a\n", strings.Repeat("s", 101)}},
		{"resource", func(s string) error { return events.Resource{Kind: "project", ID: s}.Validate() }, []string{"p", "a:b@c.d-e_f", strings.Repeat("a", 128)}, []string{"", "-", ".", "a/b", "a b", strings.Repeat("a", 129)}},
		{"resource kind", func(s string) error { return events.Resource{Kind: s, ID: "x"}.Validate() }, []string{"p", "a_1", strings.Repeat("a", 32)}, []string{"", "A", "_a", "1", "a-b", strings.Repeat("a", 33)}},
		{"actor", func(s string) error { return events.Actor{Kind: events.ActorKey, ID: s}.Validate() }, []string{"key_" + ulidText}, []string{"", "bob"}},
		{"system actor", func(s string) error { return events.Actor{Kind: events.ActorSystem, ID: s}.Validate() }, []string{"expirer"}, []string{"", "a.b"}},
		{"actor kind", func(s string) error { return events.Actor{Kind: events.ActorKind(s), ID: "key_" + ulidText}.Validate() }, []string{"key", "system"}, []string{"", "Key", "user"}},
		{"revoke code", func(s string) error { return events.RevokeCode(s).Validate() }, []string{"unspecified", "key_compromise", "affiliation_changed", "superseded", "cessation_of_operation", "privilege_withdrawn"}, []string{"", "Unspecified", "hold"}},
		{"text of 3", func(s string) error { return input.CheckText(s, 3) }, []string{"", "äöü", "日本語", "\u2028"}, []string{"abcd", "\x00", "\n", "\u0085", "\x7f", "\xff", "a\xc3"}},
	} {
		for _, s := range c.good {
			if err := c.validate(s); err != nil {
				t.Errorf("%s %q: %v", c.name, s, err)
			}
		}
		for _, s := range c.bad {
			if c.validate(s) == nil {
				t.Errorf("%s %q is accepted", c.name, s)
			}
		}
	}
}

func TestReasonsAreClosed(t *testing.T) {
	for i, r := range events.Reasons() {
		if int(r) != i+1 || r.Allowed() != (r == events.ReasonOK) {
			t.Errorf("reason %d is %s, allowed %v", i+1, r, r.Allowed())
		}
	}
	if n := len(events.Reasons()); n != 14 || events.LastReason != 14 || events.ReasonHTTPSRequired != 13 || events.Reason(200).String() != "reason_200" {
		t.Errorf("%d reasons; 200 prints as %s", n, events.Reason(200))
	}
}

// No way of printing shows a secret, or more of a digest than its redaction (E3).
func TestSecretsAreRedacted(t *testing.T) {
	const plain = "kt_Tr0ub4dor3CorrectHorseBatteryStaple99"
	s := events.NewSecret(plain)
	d := s.Digest()
	hexDigest := digest{d}.String()
	hold := struct {
		Secret events.Secret
		Ptr    *events.Secret
		Digest events.Digest
		List   []events.Secret
		Map    map[string]events.Secret
	}{s, &s, d, []events.Secret{s}, map[string]events.Secret{"k": s}}

	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%t", "%10s", "%-10v", "% x"} {
		for _, x := range []any{s, &s, d, &d, hold, &hold, []any{s, d}, errors.Join(fmt.Errorf("%w: %v", errors.New("bad key"), s))} {
			fmt.Fprintf(&out, verb+"\n", x)
		}
	}
	fmt.Fprintln(&out, s, d, hold)
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "secret", s, "ptr", &s, "digest", d, slog.Any("group", slog.GroupValue(slog.Any("s", s))))
		slog.New(h).Info("x", slog.Any("hold", map[string]any{"s": s, "list": []events.Secret{s}}))
	}
	if j, err := json.Marshal(struct{ S events.Secret }{s}); err != nil || string(j) != `{"S":"[secret]"}` {
		t.Errorf("json: %s, %v", j, err)
	} else {
		out.Write(j)
	}
	text := out.String()
	for name, leak := range map[string]string{
		"the secret": plain, "its inside": plain[8:24], "its hex": fmt.Sprintf("%x", plain)[:40], "its HEX": fmt.Sprintf("%X", plain)[:40],
		"the digest": hexDigest[16:48], "the DIGEST": strings.ToUpper(hexDigest[16:48]),
		"the digest's bytes": strings.Trim(fmt.Sprint(d[8:16]), "[]"), "the digest in Go": fmt.Sprintf("%#v", d[8:12])[7:29],
	} {
		if i := strings.Index(text, leak); i >= 0 {
			line := text[strings.LastIndex(text[:i], "\n")+1:]
			t.Errorf("%s is printed: %.200s", name, line)
		}
	}
	if !strings.Contains(text, "[secret]") || !strings.Contains(text, "sha256:"+hexDigest[:8]+"…") {
		t.Error("the redactions are not printed")
	}
	if s.Reveal() != plain || s.IsZero() || !(events.Secret{}).IsZero() {
		t.Error("Reveal or IsZero lies")
	}
}

// Errors repeat a bounded part of their input.
func TestErrorsAreBounded(t *testing.T) {
	long := strings.Repeat("x.", 5000)
	for name, parse := range parsers {
		if _, err := parse(long); err == nil || len(err.Error()) > 300 {
			t.Errorf("%s: an error of %d characters", name, len(fmt.Sprint(err)))
		}
	}
}
