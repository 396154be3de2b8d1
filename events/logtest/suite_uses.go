package logtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Uses is both ends of the stream of uses.
type Uses interface {
	events.UseSink
	events.UseSource
}

// TestUses is the contract of events.UseSink and events.UseSource. open returns
// a new, empty stream and closes it when its test ends.
func TestUses(t *testing.T, open func(t *testing.T) Uses) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, u Uses)
	}{
		{"an empty stream has no last and no tail", usesEmpty},
		{"what was answered is the node's tail and the stream's last", usesTail},
		{"one batch is stored once", usesOnce},
		{"an expectation that does not hold is fenced and stores nothing", usesFenced},
		{"of two with one expectation one is stored", usesRace},
		{"concurrent publishers lose and repeat nothing", usesConcurrent},
		{"any bytes come back unchanged", usesBytes},
		{"a node that is no subject token is refused", usesBadNode},
		{"reading honours after and max, in order", usesPages},
		{"reading waits for the first", usesWait},
		{"reading ends with its context", usesContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			c.run(t, ctx, u)
			if !t.Failed() {
				checkUses(t, ctx, u)
			}
		})
	}
}

// publish stores data as the node's next message.
func publish(t *testing.T, ctx context.Context, u Uses, node events.NodeID, id, data string) events.Seq {
	t.Helper()
	tail, _, err := u.Tail(ctx, node)
	if err != nil {
		t.Fatal(err)
	}
	seq, err := u.Publish(ctx, node, id, tail.Seq, []byte(data))
	if err != nil {
		t.Fatalf("publish %s: %v", id, err)
	}
	return seq
}

// readUses reads the whole stream in pages of seven.
func readUses(t *testing.T, ctx context.Context, u Uses) (all []events.UseMessage) {
	t.Helper()
	last, err := u.LastUse(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for after := events.Seq(0); after < last; {
		page, err := u.ReadUses(ctx, after, 7)
		if err != nil || len(page) == 0 || len(page) > 7 {
			t.Fatalf("read at most 7 after %d: %d messages, %v", after, len(page), err)
		}
		all, after = append(all, page...), page[len(page)-1].Seq
	}
	return all
}

func checkUses(t *testing.T, ctx context.Context, u Uses) {
	t.Helper()
	for i, m := range readUses(t, ctx, u) {
		if m.Seq != events.Seq(i+1) || m.Stored.Validate() != nil || m.Node.Validate() != nil {
			t.Errorf("message %d: sequence %d, node %q, stored %s", i+1, m.Seq, m.Node, m.Stored)
		}
	}
}

func usesEmpty(t *testing.T, ctx context.Context, u Uses) {
	if n, err := u.LastUse(ctx); n != 0 || err != nil {
		t.Errorf("last: %d, %v", n, err)
	}
	if m, ok, err := u.Tail(ctx, "n1"); ok || err != nil {
		t.Errorf("tail: %v, %v, %v", m, ok, err)
	}
}

func usesTail(t *testing.T, ctx context.Context, u Uses) {
	for i := range 6 {
		node := events.NodeID(fmt.Sprint("n", i%2))
		data := fmt.Sprint("data", i)
		seq := publish(t, ctx, u, node, fmt.Sprint("id", i), data)
		if seq != events.Seq(i+1) {
			t.Errorf("message %d has sequence %d", i+1, seq)
		}
		m, ok, err := u.Tail(ctx, node)
		if err != nil || !ok || m.Seq != seq || m.Node != node || string(m.Data) != data || m.Stored.Validate() != nil {
			t.Errorf("tail of %s after message %d: %+v, %v, %v", node, seq, m, ok, err)
		}
		if last, err := u.LastUse(ctx); err != nil || last != seq {
			t.Errorf("last after message %d: %d, %v", seq, last, err)
		}
	}
	if _, ok, err := u.Tail(ctx, "n"); ok || err != nil {
		t.Errorf("tail of a node whose name only starts others': %v, %v", ok, err)
	}
}

func usesOnce(t *testing.T, ctx context.Context, u Uses) {
	publish(t, ctx, u, "n1", "a", "one")
	want := publish(t, ctx, u, "n1", "b", "two")
	publish(t, ctx, u, "n2", "other", "other")
	each(writers, func(int) {
		for range 3 {
			if seq, err := u.Publish(ctx, "n1", "b", 1, []byte("two")); err != nil || seq != want {
				t.Errorf("the same batch again: %d, %v, want %d", seq, err, want)
			}
		}
	})
	each(writers, func(int) {
		if seq, err := u.Publish(ctx, "n1", "c", want, []byte("three")); err != nil || seq != 4 {
			t.Errorf("one new batch by many at once: %d, %v, want 4", seq, err)
		}
	})
	if n := len(readUses(t, ctx, u)); n != 4 {
		t.Errorf("%d messages, want 4", n)
	}
}

func usesFenced(t *testing.T, ctx context.Context, u Uses) {
	first := publish(t, ctx, u, "n1", "a", "one")
	last := publish(t, ctx, u, "n1", "b", "two")
	publish(t, ctx, u, "n2", "other", "other")
	for _, expect := range []events.Seq{0, first} {
		for range 2 { // it stays so
			seq, err := u.Publish(ctx, "n1", fmt.Sprint("late", expect), expect, []byte("late"))
			var fenced *events.FencedError
			if !errors.As(err, &fenced) || !errors.Is(err, events.ErrFenced) || seq != 0 {
				t.Fatalf("after message %d: %d, %v", expect, seq, err)
			}
			if m := fenced.Last; m.Seq != last || m.Node != "n1" || string(m.Data) != "two" || m.Stored.Validate() != nil {
				t.Errorf("after message %d: fenced by %+v", expect, m)
			}
			for _, class := range []error{events.ErrConflict, events.ErrUnavailable, events.ErrFull, events.ErrUnknownOutcome} {
				if errors.Is(err, class) {
					t.Errorf("after message %d: also reported as %v", expect, class)
				}
			}
		}
	}
	if n := len(readUses(t, ctx, u)); n != 3 {
		t.Errorf("%d messages, want 3", n)
	}
	publish(t, ctx, u, "n1", "c", "three")
}

func usesRace(t *testing.T, ctx context.Context, u Uses) {
	for round := range 10 {
		tail, _, err := u.Tail(ctx, "n1")
		if err != nil {
			t.Fatal(err)
		}
		var stored [writers]events.Seq
		each(writers, func(i int) {
			id := fmt.Sprint(round, "/", i)
			seq, err := u.Publish(ctx, "n1", id, tail.Seq, []byte(id))
			if err != nil && !errors.Is(err, events.ErrFenced) {
				t.Errorf("publish %s: %v", id, err)
			}
			stored[i] = seq
		})
		n := 0
		for i, seq := range stored {
			if seq == 0 {
				continue
			}
			n++
			if m, _, err := u.Tail(ctx, "n1"); err != nil || m.Seq != seq || string(m.Data) != fmt.Sprint(round, "/", i) {
				t.Errorf("the tail is message %d, %q, %v: want %d of writer %d", m.Seq, m.Data, err, seq, i)
			}
		}
		if n != 1 {
			t.Fatalf("round %d: %d of %d were stored", round, n, writers)
		}
	}
}

func usesConcurrent(t *testing.T, ctx context.Context, u Uses) {
	const each1 = 25
	each(writers, func(i int) {
		node, last := events.NodeID(fmt.Sprint("n", i)), events.Seq(0)
		for n := range each1 {
			id := fmt.Sprint(node, "/", n)
			seq, err := u.Publish(ctx, node, id, last, []byte(id))
			for errors.Is(err, events.ErrUnknownOutcome) || errors.Is(err, events.ErrUnavailable) && ctx.Err() == nil {
				seq, err = u.Publish(ctx, node, id, last, []byte(id))
			}
			last = seq
			if err != nil {
				t.Errorf("publish %s: %v", id, err)
				return
			}
		}
	})
	next := map[events.NodeID]int{}
	for _, m := range readUses(t, ctx, u) {
		if want := fmt.Sprint(m.Node, "/", next[m.Node]); string(m.Data) != want {
			t.Errorf("message %d of %s is %q, want %q", m.Seq, m.Node, m.Data, want)
		}
		next[m.Node]++
	}
	for node, n := range next {
		if n != each1 {
			t.Errorf("%s has %d messages, want %d", node, n, each1)
		}
	}
	if len(next) != writers {
		t.Errorf("messages of %d nodes, want %d", len(next), writers)
	}
}

func usesBytes(t *testing.T, ctx context.Context, u Uses) {
	data := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n', 0x80}, 64<<10/6)
	publish(t, ctx, u, "n1", "big", string(data))
	all := readUses(t, ctx, u)
	if len(all) != 1 || !bytes.Equal(all[0].Data, data) {
		t.Errorf("%d bytes came back changed", len(data))
	}
}

func usesBadNode(t *testing.T, ctx context.Context, u Uses) {
	for _, node := range []events.NodeID{"", "a.b", "*", ">", "a b"} {
		if _, err := u.Publish(ctx, node, "id", 0, []byte("x")); err == nil {
			t.Errorf("published under node %q", node)
		}
	}
	if n, err := u.LastUse(ctx); n != 0 || err != nil {
		t.Errorf("refused, and yet last is %d, %v", n, err)
	}
}

func usesPages(t *testing.T, ctx context.Context, u Uses) {
	for i := range 10 {
		publish(t, ctx, u, "n1", fmt.Sprint("id", i), fmt.Sprint(i))
	}
	for after := range events.Seq(10) {
		for _, limit := range []int{1, 3, 100} {
			got, err := u.ReadUses(ctx, after, limit)
			if err != nil || len(got) == 0 || len(got) > min(limit, int(10-after)) {
				t.Fatalf("read at most %d after %d: %d messages, %v", limit, after, len(got), err)
			}
			for i, m := range got {
				if m.Seq != after+events.Seq(i)+1 || string(m.Data) != fmt.Sprint(m.Seq-1) || m.Node != "n1" {
					t.Errorf("read after %d: place %d holds message %d, %q", after, i, m.Seq, m.Data)
				}
			}
		}
	}
}

func usesWait(t *testing.T, ctx context.Context, u Uses) {
	publish(t, ctx, u, "n1", "a", "one")
	type answer struct {
		got []events.UseMessage
		err error
	}
	answers := make(chan answer, 1)
	go func() { // joined below
		got, err := u.ReadUses(ctx, 1, 10)
		answers <- answer{got, err}
	}()
	select {
	case a := <-answers:
		t.Errorf("read past the end did not wait: %d messages, %v", len(a.got), a.err)
		return
	case <-time.After(20 * time.Millisecond):
	}
	publish(t, ctx, u, "n1", "b", "two")
	if a := <-answers; a.err != nil || len(a.got) != 1 || a.got[0].Seq != 2 || string(a.got[0].Data) != "two" {
		t.Errorf("read that waited: %d messages, %v", len(a.got), a.err)
	}
}

func usesContext(t *testing.T, ctx context.Context, u Uses) {
	over, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if got, err := u.ReadUses(over, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read past its deadline: %d messages, %v", len(got), err)
	}
}
