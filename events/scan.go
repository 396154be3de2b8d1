package events

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/oklog/ulid/v2"
)

// scan reads a document as Encode prints it, in one pass over its bytes: a replay
// of the log costs little else. It accepts nothing that read refuses, and gives the
// same event; ok is false when the document is not canonical, or is no event, and
// read then says what it is. What it returns shares no memory with m.
func (c *catalogue) scan(m *Message) (e Event, ok bool) {
	w := pool.Get().(*words)
	defer pool.Put(w)
	s := scanner{b: m.Data, words: w}
	s.need(`{"specversion":"1.0","type":"`)
	shape := c.shapes[string(s.raw())]
	if shape == nil {
		return e, false
	}
	s.need(`,"source":`)
	e.Source = s.word()
	s.need(`,"subject":"`)
	if e.Aggregate, ok = s.aggregate(m.Subject, s.raw()); !ok {
		return e, false
	}
	s.need(`,"id":`)
	e.ID = EventID(s.ulid(`"`))
	s.need(`,"time":`)
	e.Time = s.time()
	s.need(`,"rev":`)
	e.Rev = uint64(s.number())
	if s.member(`"prev":`) {
		s.hex(e.Prev[:])
	}
	if s.member(`"cmd":`) {
		e.Command = s.text()
	}
	if shape.since != "" {
		s.need(`,"minrelease":"` + string(shape.since) + `"`)
	}
	s.need(`,"data":{"actor":{"kind":`)
	e.Actor.Kind = ActorKind(s.word())
	s.need(`,"id":`)
	e.Actor.ID = s.word()
	s.need(`}`)
	if s.member(`"ip":`) {
		var err error
		if e.IP, err = netip.ParseAddr(s.word()); err != nil {
			return e, false
		}
	}
	if s.member(`"user_agent":`) {
		e.UserAgent = s.word()
	}
	if s.member(`"request_id":`) {
		e.RequestID = s.text()
	}
	if s.member(`"reason":`) {
		e.Reason = s.text()
	}
	s.need(`,"data":`)
	e.Data = shape.empty()
	s.data(e.Data)
	s.need(`}}`)
	if s.bad || s.i != len(s.b) || e.Validate() != nil {
		return e, false
	}
	e.Data = shape.newest(e.Data)
	return e, true
}

// scanner reads bytes from left to right. Once they are not as they should be, bad
// is set and stays set.
type scanner struct {
	b     []byte
	i     int // the next byte
	bad   bool
	words *words
}

// need skips what must stand here.
func (s *scanner) need(text string) {
	if !s.at(s.i, text) {
		s.bad = true
		return
	}
	s.i += len(text)
}

func (s *scanner) at(i int, text string) bool {
	return len(s.b)-i >= len(text) && string(s.b[i:i+len(text)]) == text
}

// member skips the name of a member, and the comma before it, if it stands here.
func (s *scanner) member(name string) bool {
	i := s.i
	if i == 0 || s.bad {
		return false
	}
	if s.b[i-1] != '{' {
		if !s.at(i, ",") {
			return false
		}
		i++
	}
	if !s.at(i, name) {
		return false
	}
	s.i = i + len(name)
	return true
}

// raw reads text whose first quote has been read, up to its last; it has no escapes.
func (s *scanner) raw() []byte {
	start := s.i
	ascii := true
	for i := start; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			s.i = i + 1
			if !ascii && !utf8.Valid(s.b[start:i]) {
				s.bad = true
			}
			return s.b[start:i]
		case c < ' ' || c == '\\':
			s.bad = true
			return nil
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	s.bad = true
	return nil
}

// fixed reads n bytes and the last quote. The caller sees to it that they are of
// an alphabet without quotes and escapes.
func (s *scanner) fixed(n int) []byte {
	if s.bad || len(s.b)-s.i <= n || s.b[s.i+n] != '"' {
		s.bad = true
		return nil
	}
	b := s.b[s.i : s.i+n]
	s.i += n + 1
	return b
}

// nibbles are the values of lower-case hexadecimal digits, 255 for other bytes.
var nibbles = func() (values [256]byte) {
	for i := range values {
		values[i] = 255
	}
	for i := range byte(16) {
		values["0123456789abcdef"[i]] = i
	}
	return values
}()

// text reads a string.
func (s *scanner) text() string {
	start := s.i
	s.need(`"`)
	if s.bad {
		return ""
	}
	raw := s.raw()
	if !s.bad {
		return string(raw)
	}
	// With escapes.
	end := start + 1
	for ; end < len(s.b) && s.b[end] != '"'; end++ {
		if s.b[end] == '\\' {
			end++
		}
	}
	if end >= len(s.b) {
		return ""
	}
	out, err := jsontext.AppendUnquote(nil, s.b[start:end+1])
	s.i, s.bad = end+1, err != nil
	return string(out)
}

// word reads a string that other events have as well.
func (s *scanner) word() string {
	start, was := s.i, s.bad
	s.need(`"`)
	raw := s.raw()
	if s.bad && !was { // it has escapes, perhaps
		s.i, s.bad = start, false
		return s.text()
	}
	return s.words.get(raw)
}

func (s *scanner) number() (n int64) {
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' && s.i-start < 19 {
		n = n*10 + int64(s.b[s.i]-'0')
		s.i++
	}
	if digits := s.i - start; digits == 0 || digits > 18 || digits > 1 && s.b[start] == '0' {
		s.bad = true
	}
	return n
}

func (s *scanner) ulid(start string) (id [16]byte) {
	s.need(start)
	u, err := parseULID(string(s.fixed(ulid.EncodedSize)))
	if err != nil || u.IsZero() {
		s.bad = true
	}
	return u
}

func (s *scanner) key() KeyID { return KeyID(s.ulid(`"key_`)) }

func (s *scanner) hex(dst []byte) {
	s.need(`"`)
	b := s.fixed(2 * len(dst))
	if s.bad {
		return
	}
	for i := range dst {
		high, low := nibbles[b[2*i]], nibbles[b[2*i+1]]
		if high|low > 15 {
			s.bad = true
			return
		}
		dst[i] = high<<4 | low
	}
}

func (s *scanner) time() Time {
	s.need(`"`)
	t, ok := scanTime(s.fixed(len(timeLayout)))
	s.bad = s.bad || !ok
	return t
}

// scanTime is ParseTime without its errors.
func scanTime(b []byte) (Time, bool) {
	const form = "0000-00-00T00:00:00.000Z"
	if len(b) != len(form) {
		return 0, false
	}
	for i := range len(form) {
		if form[i] == '0' {
			if b[i] < '0' || b[i] > '9' {
				return 0, false
			}
		} else if b[i] != form[i] {
			return 0, false
		}
	}
	n := func(i, j int) (n int) {
		for ; i < j; i++ {
			n = n*10 + int(b[i]-'0')
		}
		return n
	}
	day, hour, minute, second := n(8, 10), n(11, 13), n(14, 16), n(17, 19)
	d := time.Date(n(0, 4), time.Month(n(5, 7)), day, hour, minute, second, n(20, 23)*1e6, time.UTC)
	if month := n(5, 7); int(d.Month()) != month || d.Day() != day || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	t := At(d)
	return t, t.Validate() == nil
}

// aggregate reads a subject, which the document must repeat.
func (s *scanner) aggregate(subject string, said []byte) (a Aggregate, ok bool) {
	if s.bad {
		return a, false
	}
	if reader, ok := strings.CutPrefix(subject, ReadPrefix); ok {
		a = ReaderAggregate(Actor{ID: s.words.get([]byte(reader))})
		return a, string(said) == a.String()
	}
	rest, ok := strings.CutPrefix(subject, LifePrefix)
	if !ok || len(rest) != len(said) {
		return a, false
	}
	var cut [4]int // the ends of the parts
	n := 0
	for i := range len(said) {
		c := rest[i]
		if c == '.' {
			if c = '/'; n == 3 {
				return a, false
			}
			cut[n] = i
			n++
		}
		if c != said[i] {
			return a, false
		}
	}
	if n != 3 {
		return a, false
	}
	w := s.words
	a = Aggregate{AggregateKind(w.get(said[cut[1]+1 : cut[2]])), KeyspaceID(w.get(said[:cut[0]])), TenantID(w.get(said[cut[0]+1 : cut[1]])), string(said[cut[2]+1:])}
	return a, a.Kind != KindReader // the rest is for Event.Validate
}

// words are strings that are met again and again, so that all events share one.
type words [1024]string

var (
	pool = sync.Pool{New: func() any { return new(words) }}
	seed = maphash.MakeSeed()
)

func (w *words) get(b []byte) string {
	if len(b) > 64 {
		return string(b)
	}
	at := &w[maphash.Bytes(seed, b)%uint64(len(w))]
	if *at != string(b) {
		*at = string(b)
	}
	return *at
}
