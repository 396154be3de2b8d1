package commands

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Bootstrap makes what Keytrail needs before anybody can ask it for anything: the
// built-in keyspace, and a root key with the given secret that may do all. It
// writes only what is missing, in one append, so it may be run again after a
// crash at any point and by several processes at once. The root key's id is
// derived from its secret; another secret makes another root key, which is the
// way back in when every administrator's key is lost, has ended or is shut out. The
// root key has no restriction, expiry, allowlist or limit, and with it the limit of
// its tenant is lifted, so that nothing on the log holds it back. A release with a
// newer built-in definition writes it as a new version.
//
// The error is one of events.Log's, or says that the secret is not of the
// built-in keyspace's form (draw it with NewSecret).
func Bootstrap(ctx context.Context, log LeasedLog, secret events.Secret, now events.Time) (events.KeyID, error) {
	def := events.BuiltinDefinition()
	t, _, ok := def.TypeOf(secret.Reveal())
	if !ok {
		return events.KeyID{}, fmt.Errorf("bootstrap: the root key's secret does not have the form of keyspace %s", input.Quote(events.Builtin))
	}
	d := secret.Digest()
	sum := digest("keytrail/bootstrap/v1", string(d[:]))
	id := events.KeyID(sum[:16])
	root := &events.KeyCreated{
		Digest: d, Hint: t.Hint(secret.Reveal()),
		Name: "root", KeyType: t.Name, Scopes: []string{events.ScopeAdmin},
	}
	for range maxTries {
		b := &batch{now: now, readers: log.Readers(), seal: sealSystem("init", "/keytrail/init", now)}
		if err := bootstrap(ctx, log, b, &def, id, root); err != nil {
			return id, fmt.Errorf("bootstrap: %w", err)
		}
		if len(b.writes) == 0 {
			return id, raiseToEnd(ctx, log, 0)
		}
		if seq, err := store(ctx, log, b.writes); err == nil {
			return id, raiseToEnd(ctx, log, seq)
		} else if !errors.Is(err, events.ErrConflict) {
			return id, fmt.Errorf("bootstrap: %w", err)
		}
	}
	return id, fmt.Errorf("bootstrap: decided %d times: %w", maxTries, events.ErrConflict)
}

// LeasedLog is a lifecycle log with its log of leases.
type LeasedLog interface {
	events.Log
	events.Leases
}

// raiseToEnd makes the first floor of a log, or of a log of leases that was made
// anew: without one no node answers. Event seq is known to be stored.
func raiseToEnd(ctx context.Context, log LeasedLog, seq events.Seq) error {
	last, err := events.LastAtLeast(ctx, log, seq)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, raiseBudget)
		defer cancel()
		err = raise(ctx, log, events.Head{Log: log.ID(), Size: max(last, seq)}) // no view is here that knows the root
	}
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

// bootstrap puts what is missing into b.
func bootstrap(ctx context.Context, log events.Log, b *batch, def *keyspace.Definition, id events.KeyID, root *events.KeyCreated) error {
	space := events.KeyspaceAggregate(events.Builtin)
	history, err := log.Load(ctx, space)
	if err != nil {
		return err
	}
	ks, err := foldKeyspace(history)
	if err != nil {
		return err
	}
	if data := redefine(&ks, *def); data != nil {
		if _, err := b.add(space, ks.Chain, ks.UpdatedAt, data); err != nil {
			return err
		}
	}
	key := events.KeyAggregate(events.Builtin, events.RootTenant, id)
	if history, err = log.Load(ctx, key); err != nil || len(history) > 0 {
		return err
	}
	tenant := events.TenantAggregate(events.Builtin, events.RootTenant)
	if history, err = log.Load(ctx, tenant); err != nil {
		return err
	}
	operators, err := foldTenant(events.Tenant{}, history)
	if err != nil {
		return err
	}
	if operators.Limit != nil {
		if _, err := b.tenant(tenant, &operators, &events.TenantLimitUpdated{Before: operators.Limit}); err != nil {
			return err
		}
	}
	_, err = b.key(key, new(events.Key), root)
	return err
}

// sealSystem fills in the envelope of what Keytrail itself does.
func sealSystem(component, source string, now events.Time) func(*events.Event) error {
	return func(e *events.Event) error {
		id, err := ulid.New(uint64(now), rand.Reader)
		e.ID = events.EventID(id)
		e.Source = source
		e.Actor = events.Actor{Kind: events.ActorSystem, ID: component}
		return err
	}
}
