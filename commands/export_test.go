package commands

import "github.com/keytrail/keytrail/events"

// SetMost bounds how many timers are set at once.
func (x *Expirer) SetMost(n int) { x.most = n }

// GuardData reports what the two ways of guardText find in the data of an event: whether
// the quick one clears it, and whether the thorough one refuses it.
func GuardData(known events.SecretFinder, e *events.Event) (cleared, refused bool, err error) {
	w := events.Write{Event: *e}
	m, err := w.Encode()
	if err != nil {
		return false, false, err
	}
	g := textGuard{known: known}
	cleared = g.plain(m.Data)
	err = g.data(e.Data)
	return cleared, g.secret != nil || g.unseen != nil, err
}
