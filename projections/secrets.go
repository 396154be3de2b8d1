package projections

import (
	"iter"
	"maps"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// FindSecret implements events.SecretFinder: by the forms of all keyspaces, and
// by the digests of all keys, the ended ones included. It takes no lock.
func (v *Keys) FindSecret(text string) (start, end int, ok bool) {
	return events.FindSecret(text, v.rules(), v.knows)
}

// IsSecret is events.IsSecret by the same forms and digests. It takes no lock.
func (v *Keys) IsSecret(name string) bool { return events.IsSecret(name, v.rules(), v.knows) }

func (v *Keys) knows(d events.Digest) bool {
	_, ok := v.byDigest(&d)
	return ok
}

// rules lists the rules of all keyspaces.
func (v *Keys) rules() iter.Seq[*keyspace.Compiled] {
	return func(yield func(*keyspace.Compiled) bool) {
		for _, s := range *v.spaces.Load() {
			if !yield(&s.Rules().Compiled) {
				return
			}
		}
	}
}

// FindSecret implements events.SecretFinder, as Keys.FindSecret does.
func (d *Directory) FindSecret(text string) (start, end int, ok bool) {
	d.mu.RLock()
	rules := slices.Collect(maps.Values(d.rules))
	d.mu.RUnlock()
	return events.FindSecret(text, slices.Values(rules), func(digest events.Digest) bool {
		_, ok := d.Digest(digest)
		return ok
	})
}
