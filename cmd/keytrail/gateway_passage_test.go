package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// passage is one request and what came back.
type passage struct {
	status int
	header http.Header
	body   []byte
	reused bool // of the connection
}

// send sends a request with the header names spelt as they are and the path as it is.
func send(t testing.TB, client *http.Client, method, base, path string, header http.Header, body []byte) passage {
	t.Helper()
	x, err := trySend(t, client, method, base, path, header, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return x
}

func trySend(t testing.TB, client *http.Client, method, base, path string, header http.Header, body []byte) (x passage, err error) {
	t.Helper()
	req, err := http.NewRequest(method, base, bytes.NewReader(body))
	if err != nil {
		return x, err
	}
	if len(body) == 0 {
		req.Body = http.NoBody
	}
	req.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Opaque: path}
	req.Header = http.Header{"User-Agent": {"a new user"}}
	maps.Copy(req.Header, header)
	req = req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { x.reused = i.Reused }}))
	resp, err := client.Do(req)
	if err != nil {
		return x, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	x.status, x.header, x.body = resp.StatusCode, resp.Header, b
	return x, err
}

func newClient(t testing.TB) *http.Client {
	tr := &http.Transport{MaxConnsPerHost: 1, DisableCompression: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		return hearing{c}, err
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// hearing is a connection on which a gateway may answer and stop reading before it has
// the whole request: its answer counts, and not which of the two the client sees first.
type hearing struct{ net.Conn }

func (c hearing) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(b), nil
	}
	return n, err
}

// refusalHeaders are the headers of a refusal that belong to the client.
var refusalHeaders = []string{"Content-Type", "WWW-Authenticate", "Retry-After", "Cache-Control",
	"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy"}

// sameRefusal says how the gateway's answer differs from the verifier's own.
func sameRefusal(direct, got passage) string {
	if got.status != direct.status {
		return fmt.Sprintf("status %d, the verifier answers %d\n%s", got.status, direct.status, got.body)
	}
	for _, h := range refusalHeaders {
		if a, b := direct.header.Values(h), got.header.Values(h); !slices.Equal(a, b) {
			return fmt.Sprintf("%s: %q, the verifier answers %q", h, b, a)
		}
	}
	var a, b any
	if err := json.Unmarshal(direct.body, &a); err != nil {
		return fmt.Sprintf("the verifier's body: %v\n%s", err, direct.body)
	}
	if err := json.Unmarshal(got.body, &b); err != nil {
		return fmt.Sprintf("body: %v\n%s", err, got.body)
	}
	id := got.header.Values("X-Request-Id")
	if len(id) != 1 || !strings.HasPrefix(id[0], "req_") {
		return fmt.Sprintf("X-Request-Id: %q", id)
	}
	// The ids of the two requests differ; each body must hold its own.
	a = replace(a, direct.header.Get("X-Request-Id"), "id")
	b = replace(b, id[0], "id")
	if !reflect.DeepEqual(a, b) {
		return fmt.Sprintf("body\n%s\nthe verifier answers\n%s", got.body, direct.body)
	}
	return ""
}

// sameRefusalAs is sameRefusal of a gateway's answer between two of the verifier's own.
// Seconds that are left tick: what counts is an answer during which they did not.
func sameRefusalAs(t *testing.T, direct, gateway func() passage) string {
	t.Helper()
	before := direct()
	for again := patiently(t); ; {
		got, after := gateway(), direct()
		diff := sameRefusal(before, got)
		if diff == "" {
			return ""
		}
		if moved := sameRefusal(before, after); moved == "" {
			return diff
		} else {
			again(moved)
		}
		before = after
	}
}

// replace returns v with the string from replaced by to wherever it stands.
func replace(v any, from, to string) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = replace(v[k], from, to)
		}
	case []any:
		for i := range v {
			v[i] = replace(v[i], from, to)
		}
	case string:
		if v == from {
			return to
		}
	}
	return v
}

// identityHeaders is all that reached the upstream under a name that could be
// taken for one of Keytrail's, as CGI spells them.
func identityHeaders(h http.Header) map[string][]string {
	out := map[string][]string{}
	for name, values := range h {
		if n := strings.ReplaceAll(strings.ToLower(name), "_", "-"); strings.HasPrefix(n, "x-keytrail") {
			out[n] = append(out[n], values...)
		}
	}
	return out
}

// rawExchange writes request as it is and reads one answer.
func rawExchange(t *testing.T, base, request string) passage {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	for err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = http.ReadResponse(in, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return passage{status: resp.StatusCode, header: resp.Header, body: b}
}

func lastURI(u *upstream) string {
	r, _ := u.seen()
	return r.RequestURI
}

// withHeader is h as a gateway on this machine passes it on.
func withHeader(h http.Header, proto string) http.Header {
	h = maps.Clone(h)
	h.Set("X-Forwarded-For", "127.0.0.1")
	h.Set("X-Forwarded-Proto", proto)
	return h
}

// certificate writes a certificate for 127.0.0.1 and its key into one file.
func certificate(t *testing.T) (file string, pool *x509.CertPool) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	b := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	return writeFile(t, "gateway.pem", string(b)), pool
}
