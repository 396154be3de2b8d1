package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections/snapshots"
)

// snapshotFrom is a flag: the nodes that may have a snapshot where this one has none.
type snapshotFrom []string

func (s *snapshotFrom) register(f *pflag.FlagSet) {
	var def []string
	if v := os.Getenv("KEYTRAIL_SNAPSHOT_FROM"); v != "" {
		def = strings.Split(v, ",")
	}
	f.StringSliceVar((*[]string)(s), "snapshot-from", def, "addresses of nodes that may have a snapshot where --dir has none, as https://control:7070 (KEYTRAIL_SNAPSHOT_FROM; default: none, the log is replayed)")
}

// sources returns the nodes, each with the operator key of this process.
func (s snapshotFrom) sources(a *app, dir string) (list []snapshots.Source, err error) {
	if len(s) == 0 {
		return nil, nil
	}
	const flag = "--snapshot-from (KEYTRAIL_SNAPSHOT_FROM)"
	for _, base := range s {
		u, err := url.Parse(base)
		if err != nil || !slices.Contains([]string{"http", "https"}, u.Scheme) || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(base, " \t\n") {
			return nil, usageError{fmt.Errorf("%s: want addresses of nodes, separated by commas, as https://control:7070", flag)}
		}
	}
	if dir == "" {
		return nil, usageError{fmt.Errorf("%s: want --dir (KEYTRAIL_SNAPSHOT_DIR) too, where the snapshot is kept", flag)}
	}
	key, err := a.client("")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if key.Key.IsZero() {
		return nil, usageError{fmt.Errorf("%s: want an operator key with the scope keys:read in --key-file (KEYTRAIL_KEY_FILE)", flag)}
	}
	hc := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("it points to another address: name that one with --snapshot-from")
	}}
	for _, base := range s {
		c := &client.Client{Base: base, Key: key.Key, HTTP: hc}
		list = append(list, snapshots.Source{URL: base, Get: func(ctx context.Context, path string) (io.ReadCloser, error) {
			body, err := c.Get(ctx, path)
			if p, ok := errors.AsType[*client.Problem](err); ok {
				err = api.Errorf(p.Status, p.Code, "%s", p.Detail)
			}
			return body, err
		}})
	}
	return list, nil
}
