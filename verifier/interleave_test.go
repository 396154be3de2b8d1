//go:build race || seam

package verifier

import (
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/seam"
	"github.com/keytrail/keytrail/projections"
)

// interleave runs read, and change in its midst: gaps says how many steps of change, each
// from one seam to the next, run at each seam that read comes to. It returns how many
// seams each of the two has.
func interleave(gaps []int, read, change func()) (ofRead, ofChange int) {
	changing := false
	var pause func(struct{}) bool
	step, stop := iter.Pull(func(yield func(struct{}) bool) {
		pause = yield
		change()
	})
	defer stop()
	advance := func() bool {
		changing = true
		_, more := step()
		changing = false
		return more
	}
	seam.Set(func() {
		switch {
		case changing:
			ofChange++
			pause(struct{}{})
		case ofRead < len(gaps):
			for range gaps[ofRead] {
				advance()
			}
			fallthrough
		default:
			ofRead++
		}
	})
	defer seam.Set(nil)
	read()
	for advance() {
	}
	return ofRead, ofChange
}

// schedules yields every way to run up to steps steps at the seams.
func schedules(seams, steps int) iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		gaps := make([]int, seams)
		var fill func(at, left int) bool
		fill = func(at, left int) bool {
			if at == seams {
				return yield(gaps)
			}
			for n := range left + 1 {
				gaps[at] = n
				if !fill(at+1, left-n) {
					return false
				}
			}
			return true
		}
		fill(0, steps)
	}
}

// turns counts the seams at which change goes on.
func turns(gaps []int) (n int) {
	for _, steps := range gaps {
		n += min(steps, 1)
	}
	return n
}

// history is a short history and the changes that come while somebody reads.
type history struct {
	name          string
	base, changes []change
}

// change is one event.
type change struct {
	of   events.Aggregate
	data events.Data
}

// presented is the key of all histories, other another one.
var presented, other = events.KeyAggregate(scribe, "acme", events.KeyID{15: 1}), events.KeyAggregate(scribe, "acme", events.KeyID{15: 2})

func histories(now events.Time) []history {
	// implied is a definition under which the scope implies "write", which is asked for.
	implied := func(by string, more ...string) change {
		def := scribeDefinition()
		def.Scopes = []keyspace.ScopeDef{{Name: "write"}}
		for _, name := range append([]string{"a", "b", "c"}, more...) {
			s := keyspace.ScopeDef{Name: name}
			if name == by {
				s.Implies = []string{"write"}
			}
			def.Scopes = append(def.Scopes, s)
		}
		return change{events.KeyspaceAggregate(scribe), &events.KeyspaceDefined{Definition: def}}
	}
	checked := implied("a")
	def := checked.data.(*events.KeyspaceDefined).Definition
	def.KeyTypes = []keyspace.KeyType{def.KeyTypes[0]}
	def.KeyTypes[0].Checksum = keyspace.CRC32
	checked.data = &events.KeyspaceDefined{Definition: def}

	created := func(of events.Aggregate, set func(*events.KeyCreated)) change {
		d := &events.KeyCreated{Digest: events.NewSecret(secretOf(of.ID)).Digest(), KeyType: "secret", Environment: "live"}
		set(d)
		return change{of, d}
	}
	holding := func(of events.Aggregate, scopes ...string) change {
		return created(of, func(d *events.KeyCreated) { d.Scopes = scopes })
	}
	member := func(roles ...events.RoleID) change {
		return created(presented, func(d *events.KeyCreated) { d.Roles = roles })
	}
	role := func(id events.RoleID, scopes ...string) change {
		return change{events.RoleAggregate(scribe, "acme", id), &events.RoleDefined{Scopes: scopes}}
	}
	assigned := func(scopes ...string) change {
		return change{presented, &events.KeyScopesAssigned{After: events.Grant{Scopes: scopes}}}
	}
	limited := func(burst int64) *keyspace.Limit { return &keyspace.Limit{PerMinute: 1, Burst: burst} }
	ofTenant := func(burst int64) change {
		return change{events.TenantAggregate(scribe, "acme"), &events.TenantLimitUpdated{After: limited(burst)}}
	}
	imported := created(presented, func(d *events.KeyCreated) { d.Scopes = []string{"a"} })
	imported.data = &events.KeyImported{KeyCreated: *imported.data.(*events.KeyCreated)}

	return []history{
		{"a role, then the definition", []change{implied("a"), role("dev", "b"), member("dev")}, []change{role("dev", "c"), implied("b")}},
		{"the definition, then a role", []change{implied("a"), role("dev", "b"), member("dev")}, []change{implied("c"), role("dev", "a")}},
		{"one of two roles, then the definition", []change{implied("a"), role("dev", "b"), role("idle"), member("dev", "idle")}, []change{role("dev", "c"), implied("b")}},
		{"the key's scopes, then the definition", []change{implied("a"), holding(presented, "b")}, []change{assigned("c"), implied("b")}},
		{"the definition, then the key's scopes", []change{implied("a"), holding(presented, "b")}, []change{implied("c"), assigned("a")}},
		{"the key leaves a role, which changes", []change{implied("a"), role("dev", "b"), member("dev")}, []change{assigned("c"), role("dev", "a")}},
		{"the key expires, then the definition", []change{implied("a"), holding(presented, "b")}, []change{{presented, &events.KeyExpiryChanged{After: now - 1}}, implied("b")}},
		{"the key is disabled, then the definition", []change{implied("a"), holding(presented, "b")}, []change{{presented, &events.KeyDisabled{}}, implied("b")}},
		{"another key gets the number of its terms", []change{implied("a"), holding(presented, "b")}, []change{assigned("c"), holding(other, "a")}},
		{"another scope gets the number of its", []change{implied("a"), role("dev", "x"), member("dev")}, []change{role("dev", "c"), implied("y", "y")}},
		{"the key's limit, then its tenant's", []change{implied("a"), ofTenant(3), created(presented, func(d *events.KeyCreated) { d.Scopes, d.Limit = []string{"a"}, limited(5) })},
			[]change{{presented, &events.KeyLimitUpdated{After: limited(2)}}, ofTenant(100)}},
		{"the first definition", []change{holding(presented, "b")}, []change{implied("a"), implied("b")}},
		{"a key is created, then revoked", []change{implied("a")}, []change{holding(presented, "a"), {presented, &events.KeyRevoked{Code: events.RevokeCompromise}}}},
		{"a key of another form is imported", []change{checked}, []change{imported, implied("b")}},
		{"a form changes, then a key has the old one", []change{checked}, []change{implied("a"), holding(presented, "a")}},
	}
}

// recorded returns the events of the base and then the changes.
func (s *history) recorded() (rs []events.Recorded) {
	type chain struct {
		rev  uint64
		head events.Hash
	}
	chains := map[events.Aggregate]chain{}
	for _, c := range append(s.base[:len(s.base):len(s.base)], s.changes...) {
		last := chains[c.of]
		r := events.Recorded{Seq: events.Seq(len(rs) + 1), Event: events.Event{Aggregate: c.of, Rev: last.rev + 1, Prev: last.head, Data: c.data}}
		r.Hash = events.Hash{byte(r.Seq), 1}
		chains[c.of] = chain{r.Rev, r.Hash}
		rs = append(rs, r)
	}
	return rs
}

// However a decision and the events that come meanwhile take turns, the decision is one
// that the view gives at one moment (V5), of the position that it names or a later one:
// every schedule of the steps of both is run, with -short those in which the events take two
// turns at the most. The same holds for a decision that is looked at again.
func TestDecisionsAreOfOneMoment(t *testing.T) {
	now := events.At(time.Now())
	req := &Request{Secret: events.NewSecret(secretOf(presented.ID)), Keyspace: scribe, Scope: "write"}
	readers := []struct {
		name string
		read func(view *projections.Keys) (answer string, from events.Seq)
	}{
		{"Verify", func(view *projections.Keys) (string, events.Seq) {
			d := Verify(view, new(Buckets), req, now)
			answer := fmt.Sprint(d.Reason, d.Status, d.Limit)
			if d.Key.Exists() {
				answer = fmt.Sprint(answer, d.Key.ID, d.Key.Status(), d.Key.ExpiresAt, d.Key.Scopes(), d.Key.HasScope("write"))
			}
			return answer, d.Seq
		}},
		{"holds", func(view *projections.Keys) (string, events.Seq) { return fmt.Sprint(holds(view, req, now)), 0 }},
		{"recheck", func(view *projections.Keys) (string, events.Seq) {
			n := NewNode(NodeConfig{View: view, Leases: nowhere{}, Ledger: NewLedger(LedgerConfig{Sink: nowhere{}, Node: testNode}), Logger: slog.New(slog.DiscardHandler)})
			n.lease.grants.Store(&[]grant{{life: time.Hour}})
			return fmt.Sprint(n.recheck(req, new(events.Principal))), 0
		}},
	}
	for _, s := range histories(now) {
		rs, base := s.recorded(), len(s.base)
		before := func() *projections.Keys {
			view := projections.NewKeys()
			view.Fresh(1, 0)
			if err := view.Apply(rs[:base]); err != nil {
				t.Fatal(err)
			}
			return view
		}
		for i, r := range readers {
			var want []string // after each event
			for n := base; n <= len(rs); n++ {
				view := before()
				if err := view.Apply(rs[base:n]); err != nil {
					t.Fatal(err)
				}
				answer, _ := r.read(view)
				want = append(want, answer)
			}
			try := func(gaps []int) (ofRead, ofChange int) {
				view, begun := before(), 0
				var got string
				var from events.Seq
				ends := 0
				ofRead, ofChange = interleave(gaps, func() {
					seam.At() // some of the changes may be over when it begins
					got, from = r.read(view)
					ends = begun
				}, func() {
					for i := base; i < len(rs); i++ {
						begun++
						if err := view.Apply(rs[i : i+1]); err != nil {
							t.Fatal(err)
						}
						seam.At()
					}
				})
				for i := max(int(from)-base, 0); i <= ends; i++ {
					if got == want[i] {
						return ofRead, ofChange
					}
				}
				t.Fatalf("%s: %s at position %d says\n%s\nwith the changes at %v, which is the answer at none of these:\n%s",
					s.name, r.name, from, got, gaps, strings.Join(want, "\n"))
				return 0, 0
			}
			seams, steps := try(nil)
			seams = max(seams, 14) // a key that appears is read too
			n := 0
			for gaps := range schedules(seams, steps) {
				if testing.Short() && (turns(gaps) > 2 || i > 0 && turns(gaps) > 1) {
					continue
				}
				n++
				try(gaps)
			}
			if seams < 5 || steps < 3 {
				t.Errorf("%s: %s has %d seams, and the changes %d", s.name, r.name, seams, steps)
			}
			t.Logf("%s: %s: %d schedules", s.name, r.name, n)
		}
	}
}
