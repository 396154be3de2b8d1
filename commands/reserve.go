package commands

import (
	"slices"

	"github.com/keytrail/keytrail/events"
)

// reserved refuses a batch that takes no power away, while the log keeps the room
// that it has left for those that do: nobody may be unable to revoke a key because
// others created some. It refuses every batch while the log can acknowledge none.
func (h *Handler) reserved(b *batch) error {
	if h.cfg.Recording != nil {
		if err := h.cfg.Recording(); err != nil {
			return err
		}
	}
	if h.cfg.Reserved == nil {
		return nil
	}
	full := h.cfg.Reserved()
	if full == nil {
		return nil
	}
	if takes, err := h.takesAway(b); err != nil || takes {
		return err
	}
	return full
}

// takesAway reports whether the batch takes power from keys, roles or tenants and
// gives none: by the comparison of powers by which guard judges. What neither gives
// nor takes, as a new name, is not worth the room. Nor is a definition: it is long,
// and what it takes from keys the limit of a tenant or a role takes too.
func (h *Handler) takesAway(b *batch) (bool, error) {
	if len(b.keys)+len(b.roles)+len(b.tenants) == 0 {
		return false, nil
	}
	if slices.ContainsFunc(b.writes, func(w events.Write) bool { return w.Event.Aggregate.Kind == events.KindKeyspace }) {
		return false, nil
	}
	lost := false
	judge := func(was, next *power) (gains bool) {
		lost = lost || was.beyond(next) != nil
		return next.beyond(was) != nil
	}
	for i := range b.keys {
		k := &b.keys[i]
		before, after := h.spaces(b, k.after.Keyspace)
		if !k.before.Exists() || k.before.Status == events.StatusDisabled && k.after.Status == events.StatusActive {
			return false, nil
		}
		was, err := before.power(&k.before)
		if err != nil {
			return false, err
		}
		next, err := after.power(&k.after)
		if err != nil {
			return false, err
		}
		if judge(was, next) {
			return false, nil
		}
		lost = lost || k.after.Status != k.before.Status
	}
	for i := range b.roles {
		r := &b.roles[i]
		before, _ := h.spaces(b, r.after.Keyspace)
		ks, err := before.keyspace()
		if err != nil {
			return false, err
		}
		if !r.before.Exists() || r.after.Level != r.before.Level {
			return false, nil
		}
		was, next := new(power), new(power)
		was.Scopes = ks.Definition.Expand(r.before.Scopes)
		if r.after.Exists() {
			next.Scopes = ks.Definition.Expand(r.after.Scopes)
		}
		if judge(was, next) {
			return false, nil
		}
	}
	for i := range b.tenants {
		t := &b.tenants[i]
		before, _ := h.spaces(b, t.after.Keyspace)
		ks, err := before.keyspace()
		if err != nil {
			return false, err
		}
		was := &power{rate: rateOf(ks, ks.Definition.WholeLimit(t.before.Limit))}
		next := &power{rate: rateOf(ks, ks.Definition.WholeLimit(t.after.Limit))}
		if judge(was, next) {
			return false, nil
		}
	}
	return lost, nil
}

// spaces returns a keyspace as it is and as it would be after the batch.
func (h *Handler) spaces(b *batch, id events.KeyspaceID) (before, after *space) {
	return &space{dir: h.cfg.Dir, id: id}, &space{dir: h.cfg.Dir, id: id, batch: b}
}
