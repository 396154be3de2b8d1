package commands

import "github.com/keytrail/keytrail/events"

// DecideExpire returns the record that the key's time has run out, or nil when
// there is nothing to record: the key does not expire, its time has not come, or
// its life has ended already.
func DecideExpire(k *events.Key, now events.Time) *events.KeyExpired {
	data := &events.KeyExpired{ExpiredAt: k.ExpiresAt}
	if k.May(data) != nil || now < k.ExpiresAt {
		return nil
	}
	return data
}
