package audit

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Notes says which keyspace, tenant, key or actor of the filter the trail has never
// seen, as far as the scope reaches: an answer without rows then means that the
// name is wrong, and not that nothing happened. Errors: ErrUnavailable.
func (s *Store) Notes(ctx context.Context, scope Scope, f *Filter) (notes []string, err error) {
	look := func(note, cond, name, value string) {
		if err != nil || value == "" {
			return
		}
		found := false
		q := ask("events", scope).and(cond, name, value)
		err = s.each(ctx, q.selects("1", " LIMIT 1"), q.args, func(driver.Rows) error { found = true; return nil })
		if err == nil && !found {
			notes = append(notes, fmt.Sprintf(note, value))
		}
	}
	look("nothing of a keyspace %s was ever recorded", "keyspace = {keyspace:String}", "keyspace", string(f.Keyspace))
	look("nothing of a tenant %s was ever recorded", "tenant = {tenant:String}", "tenant", string(f.Tenant))
	look("no key %s was ever recorded", "kind = 'key' AND aggregate_id = {key:String}", "key", f.Key.String())
	look("nothing by an actor %s was ever recorded", "actor_id = {actor:String}", "actor", f.Actor)
	return notes, err
}
