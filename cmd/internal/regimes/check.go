package regimes

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keytrail/keytrail/events/keyspace"
)

// Check returns every fault that can be told without a server: against the
// published schema, and against the rules of package events. A member that has
// the wrong form is told once, and the rules are asked only of what has the right
// one.
func (d *Document) Check() Faults {
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.root.append(nil)))
	if err != nil {
		panic(err) // append writes JSON
	}
	rules, words := d.rules()
	var f Faults
	for _, s := range d.schema(instance) {
		// A pattern is no sentence. If the rules have one for the same member, it
		// is told instead.
		if i := slices.IndexFunc(words, func(w Fault) bool { return w.Field == s.Field }); s.pattern && i >= 0 {
			s.Fault = words[i]
		}
		f = append(f, s.Fault)
	}
	schema := f
	for _, r := range rules {
		if !within(schema, r.Field) {
			f = append(f, r)
		}
	}
	f.sort()
	return f
}

// within reports whether something is wrong with the member already, or with one
// that holds it.
func within(f Faults, field string) bool {
	for _, x := range f {
		if rest, ok := strings.CutPrefix(field, x.Field); ok && (rest == "" || x.Field != "" && (rest[0] == '.' || rest[0] == '[')) {
			return true
		}
	}
	return false
}

// rules reads the definition as the server does, strictly, and asks it. Where a
// member has the wrong form the rest is asked without it, and what is found may
// be wrong only because of that: it is not among the faults, but its words are.
func (d *Document) rules() (faults, words Faults) {
	if err := d.Name().Validate(); err != nil {
		faults = append(faults, d.fault("rules", "name", err.Error()))
	}
	def := d.definition()
	misfits := false
	const most = 100 // decoding ends at the first fault; each is taken out, and it begins again
	for range most {
		var v keyspace.Definition
		err := json.Unmarshal(def.append(nil), &v, json.RejectUnknownMembers(true))
		if err == nil {
			found := d.Locate("rules", v.Validate())
			words = slices.Concat(faults, found)
			if !misfits {
				faults = words
			}
			return faults, words
		}
		var sem *json.SemanticError
		if !errors.As(err, &sem) || sem.JSONPointer == "" {
			return append(faults, d.fault("rules", "", "not a definition")), nil
		}
		steps := slices.Collect(sem.JSONPointer.Tokens())
		msg := "no such member"
		if !errors.Is(err, json.ErrUnknownName) {
			msg = misfit(def.find(steps), sem)
			misfits = true
		}
		faults = append(faults, d.fault("rules", d.root.dotted(steps), msg))
		def = def.without(steps)
	}
	return faults, nil
}

// misfit says why a value cannot be read.
func misfit(n *node, sem *json.SemanticError) string {
	if n != nil && n.kind == '0' && sem.GoType != nil && strings.HasPrefix(sem.GoType.Kind().String(), "int") {
		msg := "want an integer, have " + n.show()
		if whole, frac, _ := strings.Cut(n.text, "."); strings.Trim(frac, "0") == "" && whole != n.text {
			msg += ": write " + whole
		}
		return msg
	}
	var own *jsontext.SyntacticError
	if sem.Err != nil && !errors.As(sem.Err, &own) {
		return sem.Err.Error()
	}
	if n != nil {
		return n.show() + " does not fit here"
	}
	return "the value does not fit here"
}

// without returns a copy in which a member is left out; an item becomes null, so
// that those behind it keep their numbers.
func (n *node) without(steps []string) *node {
	c := *n
	switch n.kind {
	case '{':
		c.members = nil
		for _, m := range n.members {
			if m.name == steps[0] {
				if len(steps) == 1 {
					continue
				}
				m.value = m.value.without(steps[1:])
			}
			c.members = append(c.members, m)
		}
	case '[':
		c.items = nil
		for i, x := range n.items {
			if fmt.Sprint(i) == steps[0] {
				if len(steps) == 1 {
					x = &node{kind: 'n'}
				} else {
					x = x.without(steps[1:])
				}
			}
			c.items = append(c.items, x)
		}
	}
	return &c
}

// show says what stands there, for a sentence. Long text is not repeated.
func (n *node) show() string {
	switch n.kind {
	case '{':
		return "members"
	case '[':
		return "a list"
	case '"':
		if n.text == "" {
			return "empty text"
		}
		if len(n.text) > 20 {
			return "text"
		}
		return fmt.Sprintf("the text %q", n.text)
	case '0':
		if n.written != "" {
			return n.written
		}
		return n.text
	case 't':
		return "true"
	case 'f':
		return "false"
	}
	return "nothing"
}
