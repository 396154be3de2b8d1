package commands

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events/keyspace"
)

// changedPaths returns the paths at which two definitions differ.
func changedPaths(before, after *keyspace.Definition) []string {
	var a, b any
	for v, d := range map[*any]*keyspace.Definition{&a: before, &b: after} {
		if err := json.Unmarshal(canonical(d), v, asWritten); err != nil {
			panic("commands: a definition does not read back: " + err.Error())
		}
	}
	out := differ(nil, "", a, b)
	slices.Sort(out)
	return append([]string{}, out...)
}

// asWritten keeps numbers as their text: an envelope may hold any number, and a
// float64 holds neither all of them nor all of their digits.
var asWritten = json.WithUnmarshalers(json.UnmarshalFromFunc(func(dec *jsontext.Decoder, v *any) error {
	if dec.PeekKind() != '0' {
		return errors.ErrUnsupported // the default does it
	}
	number, err := dec.ReadValue()
	*v = string(number)
	return err
}))

func differ(out []string, path string, a, b any) []string {
	if am, ok := a.(map[string]any); ok {
		if bm, ok := b.(map[string]any); ok {
			return differMembers(out, am, bm, func(name string) string { return strings.TrimPrefix(path+"."+name, ".") })
		}
	}
	an, aOrder, aok := byName(a)
	bn, bOrder, bok := byName(b)
	if aok && bok {
		in := func(m map[string]any) func(string) bool {
			return func(name string) bool { _, ok := m[name]; return !ok }
		}
		if !slices.Equal(slices.DeleteFunc(aOrder, in(bn)), slices.DeleteFunc(bOrder, in(an))) {
			out = append(out, path) // the order of what both have
		}
		return differMembers(out, an, bn, func(name string) string { return path + "[" + name + "]" })
	}
	if !reflect.DeepEqual(a, b) {
		out = append(out, path)
	}
	return out
}

func differMembers(out []string, a, b map[string]any, path func(string) string) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		x, inA := a[name]
		y, inB := b[name]
		if inA && inB {
			out = differ(out, path(name), x, y)
		} else {
			out = append(out, path(name))
		}
	}
	return out
}

// byName reads a list of objects that each have a name of their own.
func byName(v any) (m map[string]any, order []string, ok bool) {
	list, ok := v.([]any)
	m = map[string]any{}
	for _, x := range list {
		o, _ := x.(map[string]any)
		name, _ := o["name"].(string)
		if name == "" || m[name] != nil {
			return nil, nil, false
		}
		m[name] = x
		order = append(order, name)
	}
	return m, order, ok
}
