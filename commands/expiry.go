package commands

import (
	"fmt"
	"time"

	"github.com/keytrail/keytrail/events"
)

// ExpiryWish is how a request says when a key shall expire: an instant, null for
// never, or a duration from now. With neither, the keyspace's default applies.
// There is no number that means "never": a zero is refused.
type ExpiryWish struct {
	ExpiresAt Opt[string] `json:"expires_at,omitzero"` // RFC 3339, or null for never
	ExpiresIn *string     `json:"expires_in,omitzero"` // as 720h or 30d
}

// Given reports whether the request says anything about the expiry.
func (w ExpiryWish) Given() bool { return w.ExpiresAt.Set || w.ExpiresIn != nil }

// resolve returns the expiry wished for, 0 for never. The policy bounds the life
// from born, which is now for a new key. Faults go to f.
func (w ExpiryWish) resolve(f *events.FieldErrors, p events.ExpiryPolicy, born, now events.Time) events.Time {
	var at events.Time
	field := "expires_at"
	switch {
	case w.ExpiresAt.Set && w.ExpiresIn != nil:
		f.Add("expires_in", "conflict", "want either expires_at or expires_in, not both")
		return 0
	case w.ExpiresAt.Set && !w.ExpiresAt.Null:
		t, err := events.ParseTimeLenient(w.ExpiresAt.Value)
		if err != nil {
			f.Add(field, "invalid", err.Error())
			return 0
		}
		if t <= now {
			f.Add(field, "past", "want an instant in the future")
			return 0
		}
		at = t
	case w.ExpiresIn != nil:
		field = "expires_in"
		d, err := events.ParseSpan(*w.ExpiresIn)
		if err != nil || d < time.Millisecond {
			f.Add(field, "invalid", "want a positive duration of at most 100 years, as 90s, 720h or 30d")
			return 0
		}
		at = now.Add(d)
	case !w.ExpiresAt.Set && p.Default != "":
		at = now.Add(p.Default.Duration())
	}
	switch {
	case at == 0 && p.Max != "":
		f.Add(field, "required", fmt.Sprintf("keys of this keyspace live %s at most: want expires_at or expires_in", p.Max))
	case at == 0 && p.Required:
		f.Add(field, "required", "keys of this keyspace must expire: want expires_at or expires_in")
	case p.Max != "" && at > born.Add(p.Longest()):
		f.Add(field, "too_late", fmt.Sprintf("keys of this keyspace live %s at most: want %s or earlier", p.Max, born.Add(p.Longest())))
	}
	return at
}
