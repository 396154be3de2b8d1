package limits

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

// handover is the account of an allocator that has stopped in order, for the one that is
// appointed in its place. Every token that it had leased counts as spent.
type handover struct {
	Allocator events.InstanceID `json:"allocator"` // whose account it is: of use only to who is appointed in its place
	After     events.Seq        `json:"after"`     // of the allocator
	Served    int64             `json:"served"`    // milliseconds since every bucket was empty, but those of what began after After
	Buckets   []handoverBucket  `json:"buckets"`   // that owe something
}

type handoverBucket struct {
	ID
	Numbers
	Owed  int64 `json:"owed"`
	Young bool  `json:"young,omitzero"` // it began after After
}

// maxHandover is how many buckets an account may have: a process must stop in time.
const maxHandover = 500_000

var errHandover = errors.New("limits: not an account of an allocator")

func decodeHandover(data []byte) (h *handover, err error) {
	h = new(handover)
	if json.Unmarshal(data, h) != nil || h.Allocator == (events.InstanceID{}) || h.Served < 0 || h.Served > maxNumber {
		return nil, errHandover
	}
	for i := range h.Buckets {
		b := &h.Buckets[i]
		if !b.ID.valid() || !b.Numbers.valid() || b.Owed < 0 || b.Owed > b.full() {
			return nil, errHandover
		}
	}
	return h, nil
}

// handedOver returns the account that is kept here, nil if there is none of use.
func (s *Service) handedOver(ctx context.Context) *handover {
	if s.cfg.Load == nil {
		return nil
	}
	data, err := s.cfg.Load()
	if err == nil && data == nil {
		return nil
	}
	var h *handover
	if err == nil {
		h, err = decodeHandover(data)
	}
	if err != nil {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the account of exact limits cannot be read: buckets start empty", slog.Any("err", err))
		return nil
	}
	return h
}

// handOver keeps the account of a process that stops. It answers no ask any more. While it
// waits itself, the one before it may still answer: then there is no account.
func (s *Service) handOver(ctx context.Context) {
	t, now := s.term.Swap(nil), s.cfg.Steady()
	if t == nil || now < t.from || s.cfg.Save == nil {
		return
	}
	h := t.account(s.cfg.Instance, now)
	if len(h.Buckets) > maxHandover {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "too many buckets of exact limits are in use to hand them over: they start empty", slog.Int("buckets", len(h.Buckets)))
		return
	}
	data, err := json.Marshal(h)
	if err == nil {
		err = s.cfg.Save(data)
	}
	if err != nil {
		s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the account of exact limits was not kept: buckets start empty", slog.Any("err", err))
	}
}

// account returns the handover of an allocator that answers nothing after now.
func (a *allocator) account(of events.InstanceID, now time.Duration) *handover {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := &handover{Allocator: of, After: a.after, Served: max(millis(now)-millis(a.since), 0), Buckets: []handoverBucket{}}
	for _, b := range a.buckets {
		a.advance(b, now)
		if owed := min(b.owed+b.leased*perToken, b.numbers.full()); owed > 0 || !b.young && a.empty(b.numbers, now) > 0 {
			h.Buckets = append(h.Buckets, handoverBucket{b.root, b.numbers, owed, b.young})
		}
	}
	return h
}

// resume returns an allocator that goes on with the account at now. What the one before
// it had leased may be spent for the life of a lease yet: nothing comes back before.
func resume(dir Directory, h *handover, now time.Duration) *allocator {
	at := now + lifeAtAllocator
	a := newAllocator(dir, at-time.Duration(h.Served)*time.Millisecond, h.After)
	for _, b := range h.Buckets {
		a.buckets[b.ID] = &bucket{root: b.ID, newest: b.Key, young: b.Young, numbers: b.Numbers, owed: b.Owed, at: millis(at)}
	}
	return a
}
