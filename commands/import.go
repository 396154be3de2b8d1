package commands

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/keytrail/keytrail/events"
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
	Index  int                `json:"index"`
	Status ImportStatus       `json:"status"`
	ID     events.KeyID       `json:"id,omitzero"`
	Errors events.FieldErrors `json:"errors,omitempty"`
}

// check reports what is wrong with the import apart from its keys.
func (c *Import) check() error {
	var f events.FieldErrors
	if len(c.Keys) == 0 {
		f.Add("keys", "required", fmt.Sprintf("want 1 to %d keys", MaxImport))
	} else if len(c.Keys) > MaxImport {
		f.Add("keys", "invalid", fmt.Sprintf("want at most %d keys; send the others in another request", MaxImport))
	}
	if err := events.CheckText(c.ImportedFrom, 200); err != nil {
		f.Add("imported_from", "invalid", err.Error())
	}
	checkReason(&f, c.Reason)
	return f.OrNil()
}

// Decide returns the import of one key, or every bad field (events.FieldErrors),
// or a *Refusal. The regime's rules apply as to a new key, with the expiry's
// bounds measured from now: what is imported lives by the rules it comes under.
func (c *ImportKey) Decide(r *Rules, now events.Time, from string) (*events.KeyImported, error) {
	var f events.FieldErrors
	digest := c.digest(&f)
	c.checkHint(&f, r, digest)
	naming := *r
	naming.AnyExpiry = true            // the key has the life that it was given
	naming.NameHolder = events.KeyID{} // asked below, after the digest: a repeated line is told by its digest
	created, err := c.Create.Decide(&naming, now, digest, c.Hint)
	if more, ok := errors.AsType[events.FieldErrors](err); ok {
		f = append(f, more...)
	} else if err != nil {
		return nil, err
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if err := r.digestFree(); err != nil {
		return nil, err
	}
	if err := r.nameFree(events.KeyID{}, c.Name); err != nil {
		return nil, err
	}
	return &events.KeyImported{KeyCreated: *created, ImportedFrom: from}, nil
}

// emptyDigest is what a tool writes that hashed nothing.
var emptyDigest = events.NewSecret("").Digest()

// digest reads the digest. A fault never repeats it: it may be a secret that was
// put in the wrong place.
func (c *ImportKey) digest(f *events.FieldErrors) events.Digest {
	d, ok := ParseDigest(c.Digest)
	switch {
	case c.Digest == "":
		f.Add("digest", "required", "want the SHA-256 of the secret, as 64 hexadecimal digits")
	case !ok:
		f.Add("digest", "invalid", "want the SHA-256 of the secret, as 64 hexadecimal digits")
	case d == emptyDigest:
		f.Add("digest", "invalid", "this is the SHA-256 of an empty text, not of a secret")
	}
	return d
}

// ParseDigest reads a digest as people write it: 64 hexadecimal digits in either
// case, perhaps after "sha256:".
func ParseDigest(s string) (d events.Digest, ok bool) {
	s = strings.TrimPrefix(s, "sha256:")
	if len(s) != hex.EncodedLen(len(d)) {
		return d, false
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err == nil && !d.IsZero()
}

// checkHint refuses a hint that shows more than the start of a secret.
func (c *ImportKey) checkHint(f *events.FieldErrors, r *Rules, digest events.Digest) {
	err := events.CheckText(c.Hint, 64)
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
