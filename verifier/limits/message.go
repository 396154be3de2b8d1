package limits

import (
	"errors"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// ask is what a node says of what it holds, and what it wants. It is about one moment, at
// which nothing that it names was spent later than it says.
type ask struct {
	Instance events.InstanceID `json:"instance"` // this run of the node
	Number   uint64            `json:"number"`   // counts up; an allocator takes each once
	Buckets  []askBucket       `json:"buckets,omitempty"`
}

type askBucket struct {
	ID
	Of     uint64 `json:"of,omitzero"`     // the number of the ask by whose answer it holds its tokens
	Held   int64  `json:"held,omitzero"`   // tokens that it may still spend
	Back   int64  `json:"back,omitzero"`   // tokens that it gives back: it will not spend them
	Want   int64  `json:"want,omitzero"`   // how many it would hold
	Need   int64  `json:"need,omitzero"`   // how many the request needs that waits, or was refused; fewer are of no use
	Demand int64  `json:"demand,omitzero"` // tokens a second that requests ask of it
}

// answer is the allocator's, with a place for each bucket of the ask.
type answer struct {
	Instance events.InstanceID `json:"instance"` // of the ask
	Number   uint64            `json:"number"`   // of the ask
	Buckets  []answerBucket    `json:"buckets,omitempty"`
	Waits    bool              `json:"waits,omitzero"` // it is appointed, and leases nothing yet: there is no bucket
}

type answerBucket struct {
	Numbers       // the limit that holds for the bucket; zero: the allocator does not know it yet
	Tokens  int64 `json:"tokens"`         // that the node may spend until the life of the lease is over, those that it held included
	Owed    int64 `json:"owed"`           // parts that the whole bucket owes: what was spent, by anybody, and has not come back
	Spare   int64 `json:"spare,omitzero"` // so many may lie idle at the node
	Wait    int64 `json:"wait,omitzero"`  // milliseconds after which another ask is of use; 0 = it got what it wanted
}

// The bounds of a message.
const (
	maxBuckets = 500 // of one ask
	maxMessage = 256 << 10
	maxNumber  = 1 << 46 // of tokens and of parts, more than a full bucket has: no product of it with perToken overflows
)

// errMessage repeats nothing of what was read.
var errMessage = errors.New("limits: not a message of this protocol")

func (id *ID) valid() bool {
	if id.Key.IsZero() {
		return id.Keyspace.Validate() == nil && id.Tenant.Validate() == nil
	}
	return id.Keyspace == "" && id.Tenant == ""
}

func (n Numbers) valid() bool {
	return n.PerMinute >= 1 && n.Burst >= 1 && n.PerMinute <= keyspace.MaxPerMinute && n.Burst <= keyspace.MaxPerMinute
}

func (q *ask) valid() bool {
	if q.Instance == (events.InstanceID{}) || q.Number == 0 || len(q.Buckets) > maxBuckets {
		return false
	}
	for i := range q.Buckets {
		b := &q.Buckets[i]
		if !b.ID.valid() {
			return false
		}
		for _, n := range [...]int64{b.Held, b.Back, b.Want, b.Need, b.Demand} {
			if n < 0 || n > maxNumber {
				return false
			}
		}
	}
	return true
}

func (a *answer) valid() bool {
	if a.Instance == (events.InstanceID{}) || a.Number == 0 || len(a.Buckets) > maxBuckets {
		return false
	}
	for i := range a.Buckets {
		b := &a.Buckets[i]
		if b.Numbers != (Numbers{}) && !b.Numbers.valid() {
			return false
		}
		for _, n := range [...]int64{b.Tokens, b.Owed, b.Spare, b.Wait} {
			if n < 0 || n > maxNumber {
				return false
			}
		}
	}
	return true
}

// encode prints an ask or an answer.
func encode[M ask | answer](m *M) []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // numbers and ids that follow their grammar
	}
	return b
}

func decodeAsk(data []byte) (q ask, err error) {
	if len(data) > maxMessage || json.Unmarshal(data, &q) != nil || !q.valid() {
		return ask{}, errMessage
	}
	return q, nil
}

func decodeAnswer(data []byte) (a answer, err error) {
	if len(data) > maxMessage || json.Unmarshal(data, &a) != nil || !a.valid() {
		return answer{}, errMessage
	}
	return a, nil
}
