package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// endpoint speaks to the engine's HTTP port: the little that starting it needs,
// without a ClickHouse client.
type endpoint struct {
	addr           string
	port           int
	user, password string
}

// client keeps no connection: an open one delays the engine's end by seconds.
// Nor does it use a proxy: the engine is on loopback.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// ping reports whether something answers on the port.
func (d endpoint) ping(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.addr+"/ping", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// query runs one statement and returns its answer as text. The password goes in
// a header, so that no error, which quotes the URL, can hold it (invariant 2).
func (d endpoint) query(ctx context.Context, sql string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.addr+"/", strings.NewReader(sql))
	if err != nil {
		return "", err
	}
	req.Header.Set("X-ClickHouse-User", d.user)
	req.Header.Set("X-ClickHouse-Key", d.password)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return text, nil
}

// freePort returns a loopback port that nobody listens on. It lies below the
// ports that Linux gives to outgoing connections (32768 and up): one of those
// could be taken by any program while the engine restarts (invariant 8).
func freePort() (int, error) {
	const low, high, tries = 20000, 32000, 64
	for range tries {
		port := low + rand.IntN(high-low)
		l, err := net.Listen("tcp4", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("find a free loopback port: none of " + strconv.Itoa(tries) + " tried was free")
}
