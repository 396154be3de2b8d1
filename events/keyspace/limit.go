package keyspace

import (
	"fmt"
	"slices"

	"github.com/keytrail/keytrail/events/input"
)

// Resolve returns the tokens a minute and at once of l: its own, those of its
// plan, or, where the definition does not name the plan any more, those of the
// retired one, the last that it had. ok is false for nil alone, which is no limit.
// A plan that never was admits nothing: no misspelt name makes a key or a tenant
// more powerful. Nor do numbers that no definition may have; perMinute is never
// less than 1.
func (d *Definition) Resolve(l *Limit, retired []Plan) (perMinute, burst int64, ok bool) {
	if l == nil {
		return 0, 0, false
	}
	if perMinute, burst = d.numbers(l, retired); perMinute < 1 {
		return 1, 0, true // no token is ever there
	}
	return perMinute, burst, true
}

func (d *Definition) numbers(l *Limit, retired []Plan) (perMinute, burst int64) {
	if l.Plan == "" {
		return l.PerMinute, l.Burst
	}
	for _, list := range [2][]Plan{d.Plans, retired} {
		for i := range list {
			if list[i].Name == l.Plan {
				return list[i].PerMinute, list[i].Burst
			}
		}
	}
	return 0, 0
}

// Retire returns the plans that the next definition does not name, of d and of
// those retired before, with the last numbers that they had.
func (d *Definition) Retire(next *Definition, before []Plan) (retired []Plan) {
	for _, p := range slices.Concat(d.Plans, before) {
		if !slices.ContainsFunc(next.Plans, func(q Plan) bool { return q.Name == p.Name }) {
			retired = append(retired, p)
		}
	}
	return retired
}

// KeyLimit returns the limit of a key whose own is l: l, or the keyspace's
// default, which may be nil.
func (d *Definition) KeyLimit(l *Limit) *Limit {
	if l == nil {
		return d.Limit
	}
	return l
}

// WholeLimit returns the limit of all keys of a tenant together, of which l is
// the tenant's own: l, or the keyspace's default, which may be nil.
func (d *Definition) WholeLimit(l *Limit) *Limit {
	if l == nil {
		return d.TenantLimit
	}
	return l
}

// Validate checks the form: the name of a plan, or two positive numbers. Nil is valid.
func (l *Limit) Validate() error {
	switch {
	case l == nil:
	case l.Plan != "":
		if !input.IsWord(l.Plan) || l.PerMinute != 0 || l.Burst != 0 {
			return fmt.Errorf("limit: want either the name of a plan or per_minute and burst")
		}
	case l.PerMinute < 1 || l.Burst < 1:
		return fmt.Errorf("limit: want per_minute and burst of at least 1")
	}
	return nil
}

// CheckNumbers bounds the two numbers of a limit that names no plan.
func (l *Limit) CheckNumbers() error {
	if l == nil || l.Plan != "" {
		return nil
	}
	var f input.FieldErrors
	addLimit(&f, "limit", l.PerMinute, l.Burst)
	return f.OrNil()
}

func addLimit(f *input.FieldErrors, path string, perMinute, burst int64) {
	if path != "" {
		path += "."
	}
	if perMinute < 1 || perMinute > MaxPerMinute {
		f.Add(path+"per_minute", "invalid", fmt.Sprintf("want 1 to %d", MaxPerMinute))
	}
	if burst < 1 || burst > MaxPerMinute {
		f.Add(path+"burst", "invalid", fmt.Sprintf("want 1 to %d", MaxPerMinute))
	}
}
