package proxy

import "sync"

// Shares keeps account of the uses that lie in KT_USE and that the auditor has not
// copied, node by node. KT_USE forgets its oldest messages when it is full, whosever
// they are; so while the auditor is down, one node that writes more than its share
// would push out the uses of others before they are copied. Admit prevents that: the
// uses of a node beyond its share are refused once the stream is half full of what is
// not copied. The zero value admits everything, until SetRoom and Copied were called.
type Shares struct {
	mu     sync.Mutex
	room   int64 // bytes of KT_USE; 0 = not known
	nodes  int   // that may connect
	heard  bool  // an auditor has told how far it is
	copied uint64
	total  int64
	byNode map[string]int64
	parts  []part // of what is not copied, in order
}

// part is what some messages that follow each other hold.
type part struct {
	last   uint64
	n      int
	byNode map[string]int64
}

// partMessages is how many messages are counted in one part. A part is forgotten as a
// whole, so that this many may count a little longer than they should.
const partMessages = 512

// overhead is what a stored message takes beside its subject, headers and data.
const overhead = 64

// SetRoom tells how many bytes KT_USE may hold, which sequence it begins with, and how
// many nodes may connect.
func (s *Shares) SetRoom(bytes int64, first uint64, nodes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room, s.nodes = bytes, max(nodes, 1)
	if first > 0 {
		s.forget(first - 1)
	}
}

// Stored tells that a message of a node was stored.
func (s *Shares) Stored(node string, seq uint64, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.parts); n > 0 && seq <= s.parts[n-1].last { // another stream, or told twice
		if seq > s.parts[n-1].last-min(s.parts[n-1].last, partMessages) {
			return
		}
		s.parts, s.byNode, s.total, s.copied = nil, nil, 0, 0
	}
	if seq <= s.copied {
		return
	}
	if n := len(s.parts); n == 0 || s.parts[n-1].n == partMessages {
		s.parts = append(s.parts, part{byNode: map[string]int64{}})
	}
	if s.byNode == nil {
		s.byNode = map[string]int64{}
	}
	p := &s.parts[len(s.parts)-1]
	size += overhead
	p.last, p.n = seq, p.n+1
	p.byNode[node] += size
	s.byNode[node] += size
	s.total += size
}

// Copied tells that the auditor has copied everything up to a sequence.
func (s *Shares) Copied(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = true
	s.forget(seq)
}

func (s *Shares) forget(seq uint64) {
	s.copied = max(s.copied, seq)
	for len(s.parts) > 0 && s.parts[0].last <= seq {
		for node, size := range s.parts[0].byNode {
			s.total -= size
			if s.byNode[node] -= size; s.byNode[node] <= 0 {
				delete(s.byNode, node)
			}
		}
		s.parts = s.parts[1:]
	}
}

// Admit reports whether a node may store a message of so many bytes. Half of the room
// is for whoever comes first; each node has an equal part of the other half, less a
// tenth for what is under way.
func (s *Shares) Admit(node string, size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room <= 0 || !s.heard {
		return true
	}
	n := int64(size) + overhead
	return s.total+n <= s.room/2 || s.byNode[node]+n <= s.room/10*4/int64(s.nodes)
}
