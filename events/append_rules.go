package events

import (
	"fmt"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// CanAppend reports the first reason for which e must not be appended: a fault of
// its form (Validate), or a rule of this release. Rules are bounds of lengths and
// numbers, and what a definition has to fulfil. They may tighten from release to
// release, so who reads the log never asks them. Log.Append asks them of each event.
func (e *Event) CanAppend() error {
	if err := e.Validate(); err != nil {
		return err
	}
	for _, t := range []struct {
		name, s string
		max     int
	}{{"user_agent", e.UserAgent, 256}, {"request_id", e.RequestID, 64}, {"reason", e.Reason, 500}} {
		if err := input.CheckText(t.s, t.max); err != nil {
			return fmt.Errorf("event: %s: %w", t.name, err)
		}
	}
	if d, ok := e.Data.(interface{ rules() error }); ok {
		if err := d.rules(); err != nil {
			return fmt.Errorf("event %s: %w", e.Type(), err)
		}
	}
	return nil
}

// The bounds of a key's lists, beside keyspace.MaxScopes: one event stays under the
// log's message size.
const (
	MaxResources = 500
	MaxAllowlist = 10_000
)

func (d *KeyspaceDefined) rules() error { return d.Definition.Validate().OrNil() }

func (d *RoleDefined) rules() error {
	if err := input.CheckText(d.Description, 500); err != nil {
		return fmt.Errorf("description: %w", err)
	}
	return atMost("scopes", d.Scopes, keyspace.MaxScopes)
}

func (d *TenantLimitUpdated) rules() error { return d.After.CheckNumbers() }

func (d *KeyCreated) rules() error {
	if err := input.CheckText(d.Hint, 64); err != nil {
		return fmt.Errorf("hint: %w", err)
	}
	if err := (Label{d.Name, d.Metadata}).rules(); err != nil {
		return err
	}
	if err := (Grant{d.Scopes, d.Roles}).rules(); err != nil {
		return err
	}
	if err := atMost("resources", d.Resources, MaxResources); err != nil {
		return err
	}
	if err := atMost("allowlist", d.Allowlist, MaxAllowlist); err != nil {
		return err
	}
	return d.Limit.CheckNumbers()
}

func (d *KeyImported) rules() error {
	if err := input.CheckText(d.ImportedFrom, 200); err != nil {
		return fmt.Errorf("imported_from: %w", err)
	}
	return d.KeyCreated.rules()
}

func (d *KeyScopesAssigned) rules() error    { return d.After.rules() }
func (d *KeyResourcesAssigned) rules() error { return atMost("resources", d.After, MaxResources) }
func (d *KeyAllowlistUpdated) rules() error  { return atMost("allowlist", d.After, MaxAllowlist) }
func (d *KeyLimitUpdated) rules() error      { return d.After.CheckNumbers() }
func (d *KeyRenamed) rules() error           { return d.After.rules() }

func (d *KeyRotated) rules() error {
	if d.Before != 0 && d.After > d.Before {
		return fmt.Errorf("after: an overlap never outlives the key's own expiry")
	}
	return nil
}

func (d *AuditQueried) rules() error  { return filterRules(d.Filter) }
func (d *AuditExported) rules() error { return filterRules(d.Filter) }

// rules: a name of 1 to 100 characters, at most 32 metadata members with keys of 1
// to 64 and values of at most 500 characters.
func (l Label) rules() error {
	if l.Name == "" {
		return fmt.Errorf("name: want 1 to 100 characters")
	}
	if err := input.CheckText(l.Name, 100); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if len(l.Metadata) > 32 {
		return fmt.Errorf("metadata: want at most 32 members")
	}
	for k, v := range l.Metadata {
		if k == "" || input.CheckText(k, 64) != nil {
			return fmt.Errorf("metadata: want keys of 1 to 64 characters")
		}
		if err := input.CheckText(v, 500); err != nil {
			return fmt.Errorf("metadata.%s: %w", input.EchoName(k), err)
		}
	}
	return nil
}

func (g Grant) rules() error {
	if err := atMost("scopes", g.Scopes, keyspace.MaxScopes); err != nil {
		return err
	}
	return atMost("roles", g.Roles, keyspace.MaxScopes)
}

func filterRules(filter map[string]string) error {
	if len(filter) > 32 {
		return fmt.Errorf("filter: want at most 32 members")
	}
	for _, v := range filter {
		if input.CheckText(v, 256) != nil {
			return fmt.Errorf("filter: want values of at most 256 characters")
		}
	}
	return nil
}

func atMost[T any](what string, list []T, n int) error {
	if len(list) > n {
		return fmt.Errorf("%s: want at most %d", what, n)
	}
	return nil
}
