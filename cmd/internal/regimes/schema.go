package regimes

import (
	"bytes"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/keytrail/keytrail/schemas"
)

// published is the compiled schema, and each schema in it by its location.
var published = sync.OnceValue(func() map[string]*jsonschema.Schema {
	byPlace, err := compile(schemas.Keyspace())
	if err != nil {
		panic(err) // it is embedded, and a test compiles it
	}
	return byPlace
})

func compile(source []byte) (map[string]*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(source))
	if err != nil {
		return nil, err
	}
	const url = "urn:keytrail:document"
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.UseLoader(jsonschema.SchemeURLLoader{}) // nothing is loaded from elsewhere
	if err := c.AddResource(url, doc); err != nil {
		return nil, err
	}
	s, err := c.Compile(url)
	if err != nil {
		return nil, err
	}
	byPlace := map[string]*jsonschema.Schema{"": s}
	collect(s, byPlace)
	return byPlace, nil
}

func collect(s *jsonschema.Schema, into map[string]*jsonschema.Schema) {
	if s == nil || into[s.Location] != nil {
		return
	}
	into[s.Location] = s
	next := []*jsonschema.Schema{s.Ref, s.Not, s.If, s.Then, s.Else, s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems}
	next = slices.Concat(next, s.AllOf, s.AnyOf, s.OneOf, s.PrefixItems, slices.Collect(maps.Values(s.Properties)),
		slices.Collect(maps.Values(s.PatternProperties)), slices.Collect(maps.Values(s.DependentSchemas)))
	if more, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
		next = append(next, more)
	}
	for _, x := range next {
		collect(x, into)
	}
}

// told is a fault that the schema tells.
type told struct {
	Fault
	pattern bool // it says no more than a regular expression does
}

func (d *Document) schema(instance any) []told { return d.against(published(), instance) }

func (d *Document) against(byPlace map[string]*jsonschema.Schema, instance any) []told {
	err := byPlace[""].Validate(instance)
	if err == nil {
		return nil
	}
	v, ok := err.(*jsonschema.ValidationError)
	if !ok {
		return []told{{Fault: d.fault("schema", "", "not valid: "+err.Error())}}
	}
	t := &teller{d: d, byPlace: byPlace}
	t.tell(v)
	seen := map[Fault]bool{}
	return slices.DeleteFunc(t.out, func(x told) bool {
		was := seen[x.Fault]
		seen[x.Fault] = true
		return was
	})
}

// teller puts what the validator found into words.
type teller struct {
	d       *Document
	byPlace map[string]*jsonschema.Schema
	out     []told
}

func (t *teller) say(steps []string, format string, args ...any) {
	t.out = append(t.out, told{Fault: t.d.fault("schema", t.d.root.dotted(steps), fmt.Sprintf(format, args...))})
}

func (t *teller) tell(v *jsonschema.ValidationError) {
	if len(t.out) >= maxFaults {
		return
	}
	s := t.byPlace[v.SchemaURL]
	if s == nil {
		s = &jsonschema.Schema{}
	}
	at := v.InstanceLocation
	n := t.d.root.find(at)
	if n == nil {
		n = &node{kind: 'n'}
	}
	switch k := v.ErrorKind.(type) {
	case *kind.OneOf:
		if len(k.Subschemas) > 1 {
			t.say(at, "want one of the forms that are possible here, not several at once")
			return
		}
		t.choose(v, s.OneOf, n)
	case *kind.AnyOf:
		t.choose(v, s.AnyOf, n)
	case *kind.Type:
		t.say(at, "%s", wrongType(k.Want, n))
	case *kind.Enum:
		t.say(at, "want %s", oneOf(k.Want))
	case *kind.Const:
		t.say(at, "want %s", oneOf([]any{k.Want}))
	case *kind.Required:
		for _, name := range k.Missing {
			t.say(append(slices.Clone(at), name), "the member is missing")
		}
	case *kind.DependentRequired:
		for _, name := range k.Missing {
			t.say(append(slices.Clone(at), name), "the member is missing, which %s needs", k.Prop)
		}
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			t.say(append(slices.Clone(at), name), "%s", noSuch(name, s))
		}
	case *kind.FalseSchema:
		t.say(at, "must not stand here")
	case *kind.PropertyNames:
		t.say(append(t.d.root.holder(at, k.Property), k.Property), "the member's name is not acceptable%s", described(s.PropertyNames))
	case *kind.Pattern:
		t.say(at, "want text that matches %s%s", k.Want, described(s))
		t.out[len(t.out)-1].pattern = true
	case *kind.Format:
		t.say(at, "want the format %s", k.Want)
	case *kind.Not:
		t.say(at, "the value is not allowed here")
	case *kind.Minimum, *kind.Maximum, *kind.ExclusiveMinimum, *kind.ExclusiveMaximum:
		t.say(at, "want %s", interval(s))
	case *kind.MultipleOf:
		t.say(at, "want a multiple of %s", number(k.Want))
	case *kind.MinLength:
		t.say(at, "want at least %s", count(k.Want, "character"))
	case *kind.MaxLength:
		t.say(at, "want at most %s", count(k.Want, "character"))
	case *kind.MinItems:
		t.say(at, "want at least %s", count(k.Want, "item"))
	case *kind.MaxItems:
		t.say(at, "want at most %s", count(k.Want, "item"))
	case *kind.MinProperties:
		t.say(at, "want at least %s", count(k.Want, "member"))
	case *kind.MaxProperties:
		t.say(at, "want at most %s", count(k.Want, "member"))
	case *kind.UniqueItems:
		t.say(append(slices.Clone(at), strconv.Itoa(k.Duplicates[1])), "the same as item %d", k.Duplicates[0])
	default:
		if len(v.Causes) == 0 {
			// A keyword that the schema does not use today: the validator's words.
			text := (&jsonschema.ValidationError{SchemaURL: v.SchemaURL, ErrorKind: v.ErrorKind}).Error()
			t.say(at, "%s", strings.TrimPrefix(text, "at '': "))
		}
		for _, c := range v.Causes {
			t.tell(c)
		}
	}
}

// choose tells what is wrong with a value that may have one of several forms: of
// the form that it comes nearest to.
func (t *teller) choose(v *jsonschema.ValidationError, forms []*jsonschema.Schema, n *node) {
	depth := len(v.InstanceLocation)
	var best *teller
	least := 0
	var types []string
	onlyTypes, incomplete := true, false
	for _, c := range v.Causes {
		b := &teller{d: t.d, byPlace: t.byPlace}
		b.tell(c)
		cost := 0
		missing := false
		typed := false
		for _, leaf := range leaves(c) {
			here := len(leaf.InstanceLocation) == depth
			switch k := leaf.ErrorKind.(type) {
			case *kind.Type:
				cost++
				if here {
					cost += 100
					typed = true
					types = append(types, k.Want...)
				}
			case *kind.Enum, *kind.Const:
				cost++
				if here {
					cost += 50
				}
			case *kind.Required:
				cost += 2 * len(k.Missing)
				missing = missing || here
			case *kind.AdditionalProperties:
				cost += 3 * len(k.Properties)
				missing = missing || here
			default:
				cost++
			}
		}
		onlyTypes = onlyTypes && typed
		if best == nil || cost < least {
			best, least, incomplete = b, cost, missing
		}
	}
	switch {
	case best == nil:
		t.say(v.InstanceLocation, "want one of the forms that are possible here")
	case onlyTypes:
		slices.Sort(types)
		t.say(v.InstanceLocation, "%s", wrongType(slices.Compact(types), n))
	case incomplete && n.kind == '{' && alternatives(forms) != "":
		t.say(v.InstanceLocation, "want either %s", alternatives(forms))
	default:
		t.out = append(t.out, best.out...)
	}
}

func leaves(v *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(v.Causes) == 0 {
		return []*jsonschema.ValidationError{v}
	}
	var out []*jsonschema.ValidationError
	for _, c := range v.Causes {
		out = append(out, leaves(c)...)
	}
	return out
}

// alternatives lists the members of each form, "" when a form asks for none.
func alternatives(forms []*jsonschema.Schema) string {
	var sets []string
	for _, f := range forms {
		for f.Ref != nil {
			f = f.Ref
		}
		if len(f.Required) == 0 {
			return ""
		}
		sets = append(sets, list(f.Required, "and"))
	}
	return strings.Join(sets, ", or ")
}

// wrongType says what is wanted, what stands there, and how to write it.
func wrongType(want []string, n *node) string {
	words := map[string]string{"object": "members", "array": "a list", "string": "text", "integer": "an integer", "number": "a number",
		"boolean": "true or false", "null": "nothing"}
	var wanted []string
	for _, w := range want {
		wanted = append(wanted, words[w])
	}
	msg := fmt.Sprintf("want %s, have %s", list(wanted, "or"), n.show())
	if len(want) != 1 {
		return msg
	}
	switch w := want[0]; {
	case w == "string" && strings.IndexByte("0tf", n.kind) >= 0:
		msg += ": put it in quotes"
	case w == "array" && (n.kind == '"' || n.kind == '0'):
		msg += ": put it in brackets"
	case n.kind != '"' || len(n.text) > maxNumber:
	case w == "boolean":
		switch strings.ToLower(n.text) {
		case "yes", "y", "on", "true":
			msg += ": write true"
		case "no", "n", "off", "false":
			msg += ": write false"
		}
	case w == "integer" || w == "number":
		if s := strings.ReplaceAll(n.text, "_", ""); integerRE.MatchString(s) {
			msg += ": write " + jsonNumber(s)
		}
	}
	return msg
}

func oneOf(values []any) string {
	var words []string
	for _, v := range values {
		switch v {
		case "": // the same as leaving the member out
		case nil:
			words = append(words, "null")
		default:
			words = append(words, fmt.Sprint(v))
		}
	}
	return list(words, "or")
}

// list writes a, b or c.
func list(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	end := len(words) - 1
	return strings.Join(words[:end], ", ") + " " + last + " " + words[end]
}

func count(n int, of string) string {
	if n != 1 {
		of += "s"
	}
	return fmt.Sprintf("%d %s", n, of)
}

func number(r *big.Rat) string {
	if r.IsInt() {
		return r.Num().String()
	}
	f, _ := r.Float64()
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func interval(s *jsonschema.Schema) string {
	var parts []string
	switch {
	case s.Minimum != nil && s.Maximum != nil:
		return number(s.Minimum) + " to " + number(s.Maximum)
	case s.Minimum != nil:
		parts = append(parts, "at least "+number(s.Minimum))
	case s.ExclusiveMinimum != nil:
		parts = append(parts, "more than "+number(s.ExclusiveMinimum))
	}
	switch {
	case s.Maximum != nil:
		parts = append(parts, "at most "+number(s.Maximum))
	case s.ExclusiveMaximum != nil:
		parts = append(parts, "less than "+number(s.ExclusiveMaximum))
	}
	return list(parts, "and")
}

// described adds the schema's own words, if they are few.
func described(s *jsonschema.Schema) string {
	if s == nil || s.Description == "" || utf8.RuneCountInString(s.Description) > 120 {
		return ""
	}
	return ": " + strings.TrimSuffix(s.Description, ".")
}

// noSuch names the member that is nearest to an unknown one, or all there are.
func noSuch(name string, s *jsonschema.Schema) string {
	known := slices.Sorted(maps.Keys(s.Properties))
	best, least := "", 3
	for _, k := range known {
		if d := distance(plainName(name), plainName(k)); d < least && d < len(k) && 2*d <= len(name) {
			best, least = k, d
		}
	}
	for _, k := range known {
		if best == "" && len(name) >= 3 && (strings.HasPrefix(k, name) || strings.HasPrefix(name, k)) {
			best = k
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("no such member; did you mean %s?", best)
	case len(known) > 0:
		return "no such member; there are " + list(known, "and")
	}
	return "no such member"
}

// plainName makes maxSeconds, max-seconds and max_seconds the same.
func plainName(s string) string {
	return strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(s))
}

// distance counts the characters to change, add or take away.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			up := row[j+1]
			if a[i] == b[j] {
				row[j+1] = last
			} else {
				row[j+1] = 1 + min(last, up, row[j])
			}
			last = up
		}
	}
	return row[len(b)]
}
