package projections

import "strings"

// numbering gives each name that something of a keyspace holds a small number: the place
// of its bit in a bitset. A name that nothing holds any more is forgotten and its number
// used again, so a keyspace does not grow however often it is defined with other names.
// Owned by the writer.
//
// No reader takes a number for that of another name. What it reads of a key was still so
// at Still, hence the scopes of it were held until then. Its rules were read after that:
// they name a scope by the number that it had then.
type numbering struct {
	names map[string]*numbered
	free  []uint32 // numbers without a name
}

// numbered is a name, once for all who hold it, and its number.
type numbered struct {
	name   string
	number uint32
	uses   uint32
}

// hold returns the name and counts one use more.
func (m *numbering) hold(name string) *numbered {
	n := m.names[name]
	if n == nil {
		n = &numbered{name: strings.Clone(name), number: uint32(len(m.names))}
		if last := len(m.free) - 1; last >= 0 {
			n.number, m.free = m.free[last], m.free[:last]
		}
		if m.names == nil {
			m.names = map[string]*numbered{}
		}
		m.names[n.name] = n
	}
	n.uses++
	return n
}

// drop counts one use less of a name that is held.
func (m *numbering) drop(name string) {
	n := m.names[name]
	if n.uses--; n.uses == 0 {
		delete(m.names, name)
		m.free = append(m.free, n.number)
	}
}
