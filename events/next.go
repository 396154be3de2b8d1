//go:build keytrail_next

package events

import (
	"cmp"
	"slices"
	"strings"
)

// This file makes a program of the release that comes next, for the tests of rolling
// upgrades: it reads one version more, of one type. No released program has it.
// Version 2 of key.renamed has the members of version 1, and admits one thing more:
// a name that begins with "next:".
func init() {
	var shapes []shape
	for _, s := range release.shapes {
		shapes = append(shapes, *s)
		if s.typ == TypeKeyRenamed && s.upgrade == nil {
			shapes[len(shapes)-1].upgrade = func(d Data) Data { return d }
			shapes = append(shapes, shape{typ: s.typ, version: s.version + 1, since: "2.1", empty: s.empty, lower: func(d Data) Data {
				if strings.HasPrefix(d.(*KeyRenamed).After.Name, "next:") {
					return nil
				}
				return d
			}})
		}
	}
	slices.SortFunc(shapes, func(a, b shape) int {
		return cmp.Or(cmp.Compare(a.typ, b.typ), cmp.Compare(a.version, b.version))
	})
	release = newCatalogue(shapes...)
}
