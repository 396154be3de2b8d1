package commands

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// MaxImport is the number of keys that one import may carry.
const MaxImport = 500

// Import asks for keys that another system issued, by the digests of their
// secrets: their holders go on using them. A plaintext never comes in here.
//
// Each key stands for itself: it is imported, was imported already, or is refused,
// whatever becomes of the others. The id of an imported key follows from keyspace,
// tenant and digest, so an import that was cut off anywhere is carried on by
// sending it again, to any node, at any time.
type Import struct {
	Keys         []ImportKey `json:"keys"`
	ImportedFrom string      `json:"imported_from,omitzero"` // where they come from, in the operator's words
	Reason       string      `json:"reason,omitzero"`        // of each key that gives none of its own
	DryRun       bool        `json:"dry_run,omitzero"`       // decide, and write nothing
}

// ImportKey is one key of an Import: what Create asks for, under the same rules,
// and the digest of the secret that there is. The secret's form cannot be told
// from a digest, so the type's form is not asked for.
type ImportKey struct {
	Digest string `json:"digest"`         // SHA-256 of the secret, 64 hexadecimal digits, perhaps after "sha256:"
	Hint   string `json:"hint,omitempty"` // readable start of the secret, safe to show
	Create

	// How the key stands where it comes from: a key that is dead there does not come
	// alive here.
	Status     events.Status     `json:"status,omitzero"`      // active (default), disabled, revoked or expired; the last with its expires_at
	RevokedAt  string            `json:"revoked_at,omitzero"`  // RFC 3339; of a revoked key, if it is known
	RevokeCode events.RevokeCode `json:"revoke_code,omitzero"` // of a revoked key; default "unspecified"

	unread input.FieldErrors // why the request's text of the key cannot be read
}

// UnmarshalJSONFrom reads one key of an import. A key that cannot be read is
// refused by itself, like one that may not be imported.
func (c *ImportKey) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	text, err := dec.ReadValue()
	if err != nil {
		return err
	}
	type members ImportKey
	if p := api.DecodeValue(text, (*members)(c)); p != nil {
		c.unread = p.Errors
		if len(c.unread) == 0 {
			c.unread.Add("", p.Code, p.Detail)
		}
	}
	return nil
}

// ImportStatus says what became of one key of an import.
type ImportStatus string

// The statuses.
const (
	ImportDone       ImportStatus = "imported"
	ImportAlready    ImportStatus = "already"    // this very key was imported before, whatever has happened to it since
	ImportRefused    ImportStatus = "refused"    // Errors say why; nothing was written
	ImportAcceptable ImportStatus = "acceptable" // a dry run found nothing against it
)

// ImportResult is what became of the key at Index of an import.
type ImportResult struct {
	Index  int               `json:"index"`
	Status ImportStatus      `json:"status"`
	ID     events.KeyID      `json:"id,omitzero"`
	Errors input.FieldErrors `json:"errors,omitempty"`
}

// check reports what is wrong with the import apart from its keys.
func (c *Import) check() error {
	var f input.FieldErrors
	if len(c.Keys) == 0 {
		f.Add("keys", "required", fmt.Sprintf("want 1 to %d keys", MaxImport))
	} else if len(c.Keys) > MaxImport {
		f.Add("keys", "invalid", fmt.Sprintf("want at most %d keys; send the others in another request", MaxImport))
	}
	if err := input.CheckText(c.ImportedFrom, 200); err != nil {
		f.Add("imported_from", "invalid", err.Error())
	}
	checkReason(&f, c.Reason)
	return f.OrNil()
}

// Decide returns the import of one key, or every bad field (input.FieldErrors),
// or a *Refusal. The keyspace's rules apply as to a new key, with the expiry's
// bounds measured from now: what is imported lives by the rules it comes under.
func (c *ImportKey) Decide(r *Rules, now events.Time, from string) (*events.KeyImported, error) {
	var f input.FieldErrors
	digest := c.digest(&f)
	c.checkHint(&f, r, digest)
	naming := *r
	naming.AnyExpiry = true // the key has the life that it was given
	naming.Ended = c.ended()
	naming.NameHolder = events.KeyID{} // asked below, after the digest: a repeated line is told by its digest
	created, err := c.Create.Decide(&naming, now, digest, c.Hint)
	if more, ok := errors.AsType[input.FieldErrors](err); ok {
		f = append(f, more...)
	} else if err != nil {
		return nil, err
	}
	for i := range f {
		if f[i].Code == "past" {
			f[i].Message += "; if the key has expired, want its status to say so: expired"
		}
	}
	imported := &events.KeyImported{ImportedFrom: from}
	c.standing(&f, imported, now)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	imported.KeyCreated = *created
	if err := r.digestFree(); err != nil {
		return nil, err
	}
	if naming.Ended { // a name is of keys that live
		return imported, nil
	}
	if err := r.nameFree(events.KeyID{}, c.Name); err != nil {
		return nil, err
	}
	return imported, nil
}

// ended reports whether the key's life is over where it comes from.
func (c *ImportKey) ended() bool {
	return c.Status == events.StatusRevoked || c.Status == events.StatusExpired
}

// standing takes over how the key stands where it comes from.
func (c *ImportKey) standing(f *input.FieldErrors, d *events.KeyImported, now events.Time) {
	switch c.Status {
	case "", events.StatusActive:
	case events.StatusDisabled:
		d.Status = c.Status
	case events.StatusRevoked:
		d.Status, d.RevokeCode = c.Status, cmp.Or(c.RevokeCode, events.RevokeUnspecified)
		if err := d.RevokeCode.Validate(); err != nil {
			f.Add("revoke_code", "invalid", err.Error())
		}
		if c.RevokedAt == "" {
			return
		}
		at, err := events.ParseTimeLenient(c.RevokedAt)
		switch {
		case err != nil:
			f.Add("revoked_at", "invalid", err.Error())
		case at > now:
			f.Add("revoked_at", "future", "want an instant that has passed")
		}
		d.RevokedAt = at
		return
	case events.StatusExpired:
		if at, err := events.ParseTimeLenient(c.ExpiresAt.Value); err != nil || at > now {
			f.Add("expires_at", "required", "the key is expired: want the instant in the past at which it did, as expires_at")
		}
	default:
		f.Add("status", "invalid", "want active, disabled, revoked or expired")
	}
	if c.RevokedAt != "" || c.RevokeCode != "" {
		f.Add("status", "conflict", "revoked_at and revoke_code are of a key whose status is revoked")
	}
}

// digest reads the digest.
func (c *ImportKey) digest(f *input.FieldErrors) events.Digest {
	d, _ := ParseDigest(c.Digest)
	code := "invalid"
	if c.Digest == "" {
		code = "required"
	}
	if fault := DigestFault(c.Digest); fault != "" {
		f.Add("digest", code, fault)
	}
	return d
}

// checkHint refuses a hint that shows more than the start of a secret.
func (c *ImportKey) checkHint(f *input.FieldErrors, r *Rules, digest events.Digest) {
	err := input.CheckText(c.Hint, 64)
	switch {
	case r.Definition.Reveals(c.Hint) || c.Hint != "" && events.NewSecret(c.Hint).Digest() == digest:
		f.Add("hint", "secret", "this is a secret, or more than half of one: want a readable start of it, or nothing")
	case err != nil:
		f.Add("hint", "invalid", err.Error())
	}
}

// digestFree refuses a digest that belongs to a key: the first that has it keeps
// it (D20), also when it has ended.
func (r *Rules) digestFree() error {
	if r.DigestHolder == nil {
		return nil
	}
	return digestKnown(*r.DigestHolder)
}

// digestKnown names the key that has the digest, which is zero when the caller
// may not know of it.
func digestKnown(holder events.KeyID) *Refusal {
	if holder.IsZero() {
		return refuse(CodeDigestKnown, "digest", "a key that you may not see already has this digest")
	}
	return refuse(CodeDigestKnown, "digest", "key %s already has this digest", holder)
}

// importedKey returns the id of the key that the import of the digest makes.
func importedKey(ks events.KeyspaceID, tenant events.TenantID, d events.Digest) events.KeyID {
	sum := digest("keytrail/import/key/v1", string(ks), string(tenant), string(d[:]))
	return events.KeyID(sum[:16])
}
