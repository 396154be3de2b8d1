package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events/input"
)

// zeroRev says what --if-rev 0 means to a command.
type zeroRev string

const (
	zeroIsNone zeroRev = "none" // nothing: what it writes has a rev from 1 up
	zeroIsNew  zeroRev = "new"  // that it makes the resource
	zeroIsRev  zeroRev = "rev"  // a rev like any other: of a tenant for which nothing is set
)

// addIfRev gives a command that writes the flag --if-rev.
func addIfRev(c *cobra.Command, zero zeroRev) {
	usage := "write only if the resource stands at this rev"
	if zero == zeroIsNew {
		usage += "; 0: only if there is none yet"
	}
	c.Flags().Uint64("if-rev", 0, usage)
	c.Flags().SetAnnotation("if-rev", "zero", []string{string(zero)})
}

// ifRev returns the precondition that the command was given, nil for none.
func ifRev(c *cobra.Command) (http.Header, error) {
	f := c.Flags().Lookup("if-rev")
	if f == nil || !f.Changed {
		return nil, nil
	}
	rev, err := c.Flags().GetUint64("if-rev")
	switch zero := zeroRev(f.Annotations["zero"][0]); {
	case err != nil:
		return nil, err
	case rev > 0 || zero == zeroIsRev:
		return forRev(rev), nil
	case zero == zeroIsNew:
		return http.Header{"If-None-Match": {"*"}}, nil
	}
	return nil, usageError{errors.New("--if-rev 0: want the rev that the last answer showed, 1 or more")}
}

func forRev(rev uint64) http.Header {
	return http.Header{"If-Match": {fmt.Sprintf("%q", fmt.Sprint(rev))}}
}

// editFlags are --add and --remove of a list that a command otherwise replaces.
type editFlags struct{ add, remove []string }

func (e *editFlags) register(c *cobra.Command, what string) {
	c.Flags().StringSliceVar(&e.add, "add", nil, what+" to add to those that the key has")
	c.Flags().StringSliceVar(&e.remove, "remove", nil, what+" to take from those that the key has")
}

func (e *editFlags) given() bool { return len(e.add)+len(e.remove) > 0 }

// apply returns the list after the edit. same says when two elements are one.
func (e *editFlags) apply(list []string, same func(a, b string) bool) ([]string, error) {
	out := slices.Clone(list)
	for _, x := range e.remove {
		n := len(out)
		if out = slices.DeleteFunc(out, func(y string) bool { return same(x, y) }); len(out) == n {
			return nil, fmt.Errorf("--remove %s: the key has %s", input.Echo(x), join(list))
		}
	}
	for _, x := range e.add {
		if !slices.ContainsFunc(out, func(y string) bool { return same(x, y) }) {
			out = append(out, x)
		}
	}
	return out, nil
}

// edit reads a key, changes one of its lists and writes it for the rev that was
// read, so that it undoes nobody's change.
func (a *app) edit(c *cobra.Command, key, suffix, member string, list func(k *keyView) ([]string, error)) error {
	path, err := keyPath(key)
	if err != nil {
		return err
	}
	ans, err := a.call(c.Context(), "", http.MethodGet, path, nil, nil, nil)
	if err != nil {
		return err
	}
	var k keyView
	if err := json.Unmarshal(ans.Data, &k); err != nil {
		return fmt.Errorf("the answer is not what this command expects: %w", err)
	}
	after, err := list(&k)
	if err != nil {
		return err
	}
	header, err := ifRev(c)
	if err != nil {
		return err
	}
	if header == nil {
		header = forRev(k.Rev)
	}
	return a.write(c, http.MethodPut, path+suffix, header, map[string]any{member: after}, waitMost)
}

// editAllowlist is `key allowlist` with --add or --remove.
func (a *app) editAllowlist(c *cobra.Command, key string, e *editFlags) error {
	return a.edit(c, key, "/allowlist", "allowlist", func(k *keyView) ([]string, error) {
		if len(k.Allowlist) == 0 && len(e.add) > 0 {
			return e.apply(nil, sameNetwork)
		}
		after, err := e.apply(k.Allowlist, sameNetwork)
		if err == nil && len(after) == 0 {
			err = usageError{errors.New("--remove: no network would be left, and without an allowlist the key may be used from any address; if that is meant, say --any")}
		}
		return after, err
	})
}

func sameNetwork(a, b string) bool {
	network := func(s string) string {
		if addr, err := netip.ParseAddr(s); err == nil {
			return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()).String()
		}
		return s
	}
	return network(a) == network(b)
}

// changedMeanwhile says what to do about a write that came too late, in the words
// of the command line.
func changedMeanwhile(p *client.Problem) string {
	if p.Status != http.StatusPreconditionFailed {
		return ""
	}
	return "nothing was written: read it again, decide again, and name the rev that you then see with --if-rev"
}
