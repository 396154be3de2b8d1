package events

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keytrail/keytrail/events/input"
)

// The bounds of one message of the use stream.
const (
	MaxUseBatchBytes = 1 << 20 // the stream's largest message
	MaxUsesPerBatch  = 65_536
	// MaxTally is the most that one Tally or gap counts: so the numbers of a message
	// never overflow, and neither does a sum over many messages.
	MaxTally = 1 << 40
)

// The fields of keytrail.v1.UseBatch. The published shape, with what each means,
// is schemas/proto/use_batch.v1.proto; a test reads either with the other.
const (
	fLog            protowire.Number = 1
	fNode           protowire.Number = 2
	fEpoch          protowire.Number = 3
	fKind           protowire.Number = 4
	fFirst          protowire.Number = 5
	fCount          protowire.Number = 6
	fNote           protowire.Number = 7
	fKeyspaces      protowire.Number = 8
	fTenants        protowire.Number = 9
	fScopes         protowire.Number = 10
	fKinds          protowire.Number = 11
	fHolderKey      protowire.Number = 12
	fHolderKeyspace protowire.Number = 13
	fHolderTenant   protowire.Number = 14
	fResourceID     protowire.Number = 15
	fResourceKind   protowire.Number = 16
	fAddr4          protowire.Number = 17
	fAddr6          protowire.Number = 18
	fTimes          protowire.Number = 19 // the tallies: fTime, fHolder, fReason and fAddr beside it
	fTime           protowire.Number = 20 // fTime..fSeq: the uses
	fHolder         protowire.Number = 21
	fReason         protowire.Number = 22
	fScope          protowire.Number = 23
	fResource       protowire.Number = 24
	fAddr           protowire.Number = 25
	fExtraCost      protowire.Number = 26
	fSeq            protowire.Number = 27

	fEndpoints       protowire.Number = 28
	fRequestRow      protowire.Number = 29 // fRequestRow..fRequestEndpoint: the requests
	fRequestID       protowire.Number = 30
	fRequestEndpoint protowire.Number = 31

	fSince protowire.Number = 32
	fUntil protowire.Number = 33

	fBlockBits protowire.Number = 34 // fBlockBits, fSpan: of the tallies, with fAddr
	fSpan      protowire.Number = 35
	numFields                   = 36
)

var useFieldNames = [numFields]string{"", "log", "node", "epoch", "kind", "first", "count", "note",
	"keyspaces", "tenants", "scopes", "kinds", "holder_key", "holder_keyspace", "holder_tenant",
	"resource_id", "resource_kind", "addr4", "addr6", "times",
	"time", "holder", "reason", "scope", "resource", "addr", "extra_cost", "seq",
	"endpoints", "request_row", "request_id", "request_endpoint", "since", "until", "block_bits", "span"}

// tableFields are the fields that stand once per entry instead of once.
const tableFields = 1<<fKeyspaces | 1<<fTenants | 1<<fScopes | 1<<fKinds | 1<<fResourceID | 1<<fEndpoints

// holder is one entry of the holder table: whose key was presented.
type holder struct {
	key      KeyID
	keyspace KeyspaceID
	tenant   TenantID
}

// validate checks all of the batch but its uses.
func (b *UseBatch) validate() error {
	if b.Log.IsZero() {
		return fmt.Errorf("log: want the id of a log")
	}
	if err := b.Node.Validate(); err != nil {
		return err
	}
	if b.Epoch <= 0 {
		return fmt.Errorf("epoch: want microseconds since the Unix epoch")
	}
	if b.Kind < BatchUses || b.Kind > BatchSuppressed {
		return fmt.Errorf("kind %d: want 1 to 5", b.Kind)
	}
	if n := len(b.Tallies); (n > 0) != (b.Kind == BatchSuppressed) || n > MaxUsesPerBatch {
		return fmt.Errorf("%d tallies: want 1 to %d on a batch of suppressed uses, none on others", n, MaxUsesPerBatch)
	}
	for i := range b.Tallies {
		if err := b.Tallies[i].validate(); err != nil {
			return fmt.Errorf("tally %d: %w", i, err)
		}
	}
	if b.Kind == BatchOpen && b.First > 1 || b.Kind != BatchOpen && b.First == 0 || b.First+b.Len() < b.First {
		return fmt.Errorf("first %d: want a number of the epoch, counted from 1", b.First)
	}
	if b.Kind != BatchGap && (b.Count != 0 || b.Note != "" || b.Since != 0 || b.Until != 0) {
		return fmt.Errorf("count, note, since, until: want them on gaps only")
	}
	if b.Count > MaxTally {
		return fmt.Errorf("count %d: want at most %d", b.Count, uint64(MaxTally))
	}
	if b.Since < 0 || b.Since > maxTime || b.Until < 0 || b.Until > maxTime || b.Until != 0 && b.Since > b.Until {
		return fmt.Errorf("since, until: want two instants in order")
	}
	if err := input.CheckText(b.Note, 200); err != nil {
		return fmt.Errorf("note: %w", err)
	}
	if n := len(b.Uses); (n > 0) != (b.Kind == BatchUses) || n > MaxUsesPerBatch {
		return fmt.Errorf("%d uses: want 1 to %d on a batch of uses, none on others", n, MaxUsesPerBatch)
	}
	return nil
}

// EncodeUses validates b and returns its wire form: a columnar protobuf message
// of at most MaxUseBatchBytes.
func EncodeUses(b *UseBatch) ([]byte, error) {
	if err := b.validate(); err != nil {
		return nil, fmt.Errorf("use batch: %w", err)
	}
	e := encoders.Get().(*useEncoder)
	defer e.release()
	for i := range b.Uses {
		if err := e.add(&b.Uses[i]); err != nil {
			return nil, fmt.Errorf("use batch: use %d: %w", i, err)
		}
	}
	for i := range b.Tallies {
		if err := e.addTally(&b.Tallies[i]); err != nil {
			return nil, fmt.Errorf("use batch: tally %d: %w", i, err)
		}
	}
	out := e.finish(b)
	if len(out) > MaxUseBatchBytes {
		return nil, fmt.Errorf("use batch: %d bytes: want at most %d; send fewer uses at once", len(out), MaxUseBatchBytes)
	}
	return out, nil
}
