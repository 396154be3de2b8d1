package keyspace

import (
	"fmt"
	"slices"

	"github.com/keytrail/keytrail/events/input"
)

// catalogue is the scopes of a definition by their names.
type catalogue map[string]*ScopeDef

func (d *Definition) catalogue() catalogue {
	c := make(catalogue, len(d.Scopes))
	for i := range d.Scopes {
		c[d.Scopes[i].Name] = &d.Scopes[i]
	}
	return c
}

// expand returns scopes and all that they imply, sorted, each once. Scopes outside
// the catalogue stay as they are.
func (c catalogue) expand(scopes []string) []string {
	seen := make(map[string]bool, len(scopes))
	todo := slices.Clone(scopes)
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[s] {
			continue
		}
		seen[s] = true
		if def := c[s]; def != nil {
			todo = append(todo, def.Implies...)
		}
	}
	out := make([]string, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// Expand returns scopes and all that they imply, sorted, each once. Scopes
// outside the catalogue stay as they are.
func (d *Definition) Expand(scopes []string) []string { return d.catalogue().expand(scopes) }

// HasScope reports whether the catalogue holds s.
func (d *Definition) HasScope(s string) bool {
	return slices.ContainsFunc(d.Scopes, func(c ScopeDef) bool { return c.Name == s })
}

// ScopeLevel returns the kind of resource that a request must name to use the
// scope, "" when it need not.
func (d *Definition) ScopeLevel(scope string) string {
	for i := range d.Scopes {
		if d.Scopes[i].Name == scope {
			return d.Scopes[i].level()
		}
	}
	return ""
}

func (s *ScopeDef) level() string {
	if s.Level == LevelTenant {
		return ""
	}
	return s.Level
}

var scopeWord = input.NewGrammar(input.Lower+input.Upper+input.Digits+"_", input.Lower+input.Upper+input.Digits+"_.:/*-", 100)

// ValidScope reports whether s can name a scope: letters, digits and
// "_ . : / * -", starting with a letter, digit or '_', 100 characters at most.
func ValidScope(s string) error {
	if !scopeWord.Match(s) {
		return fmt.Errorf("scope %s: want 1 to 100 letters, digits or any of _ . : / * -, starting with a letter, digit or '_'", input.Echo(s))
	}
	return nil
}
