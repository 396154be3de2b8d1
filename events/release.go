package events

import (
	"cmp"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
)

// Release names a release of Keytrail by its first two or three numbers, as "2.1".
// A process of a release reads every event that an older one writes.
type Release string

// FirstRelease reads the versions of the catalogue that name no release.
const FirstRelease Release = "1.0"

// ThisRelease returns the release whose events this program reads: the newest one
// that its catalogue names. A later release that adds no event has the same.
func ThisRelease() Release { return release.reads }

// Validate returns why r is no release, nil if it is one.
func (r Release) Validate() error {
	if !releaseRE.MatchString(string(r)) {
		return fmt.Errorf("release %s: want a release as 1.4", input.Quote(string(r)))
	}
	return nil
}

// Before reports whether r is older than s. No release is older than the first.
func (r Release) Before(s Release) bool {
	a, b := strings.Split(string(cmp.Or(r, FirstRelease)), "."), strings.Split(string(cmp.Or(s, FirstRelease)), ".")
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(number(a, i), number(b, i)); c != 0 {
			return c < 0
		}
	}
	return false
}

// number returns number i of a release, 0 when it has none.
func number(parts []string, i int) (n uint64) {
	if i < len(parts) {
		n, _ = strconv.ParseUint(parts[i], 10, 64)
	}
	return n
}

// Runs returns nil if this program may take part in a deployment that writes events
// of the release r (Floor.Release), and else the *NewerError that its operator needs.
func (r Release) Runs() error {
	if ThisRelease().Before(r) {
		return &NewerError{What: "what this deployment writes", Release: r}
	}
	return nil
}

// EncodeFor is Encode for a log whose readers are of the release readers at least:
// the event gets the newest version that they read. "" = the newest version. An event
// that says what no such version can say is an error of class ErrUnavailable: it can
// be written when every process has been upgraded.
func EncodeFor(e *Event, readers Release) (Message, error) { return release.encodeFor(e, readers) }

func (c *catalogue) encodeFor(e *Event, readers Release) (Message, error) {
	if err := e.Validate(); err != nil {
		return Message{}, err
	}
	s := c.newest[e.Type()]
	if s == nil {
		return Message{}, fmt.Errorf("event type %s: not in the catalogue", input.Quote(e.Type()))
	}
	if readers == "" || !readers.Before(s.since) {
		return s.encode(e)
	}
	old := *e
	for readers.Before(s.since) {
		if s.lower != nil {
			old.Data = s.lower(old.Data)
		}
		if s.lower == nil || old.Data == nil {
			return Message{}, c.needs(e).Beyond(readers)
		}
		s = s.before
	}
	if !reflect.DeepEqual(s.newest(old.Data), e.Data) { // what would be read is not what was decided
		return Message{}, c.needs(e).Beyond(readers)
	}
	return s.encode(&old)
}

// Beyond returns why an event that only r reads is not written to a log whose
// readers are of the release readers, nil if they read it.
func (r Release) Beyond(readers Release) error {
	if !readers.Before(r) {
		return nil
	}
	return &StateError{Class: ErrUnavailable, Reason: fmt.Sprintf("this needs release %s in every process of the deployment, and not every process that runs has it yet: "+
		"`keytrail nodes` shows which; upgrade them, and try again", r)}
}

// Needs returns the release that reads the event in its newest version.
func Needs(e *Event) Release { return release.needs(e) }

func (c *catalogue) needs(e *Event) Release {
	if s := c.newest[e.Type()]; s != nil {
		return cmp.Or(s.since, FirstRelease)
	}
	return FirstRelease
}
