package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func read(text string) (op, error) {
	return (&reader{r: bufio.NewReaderSize(strings.NewReader(text), 64<<10)}).next()
}

func written(t testing.TB, o op) string {
	t.Helper()
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	if err := o.write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestOperations(t *testing.T) {
	for in, want := range map[string]string{
		"PING\r\n":                                  "PING\r\n",
		"pub  a.b\t_INBOX.x  3\r\nabc\r\n":          "PUB a.b _INBOX.x 3\r\nabc\r\n",
		"PUB a 0\r\n\r\n":                           "PUB a 0\r\n\r\n",
		"HPUB a 4 6\nabcdef\r\n":                    "HPUB a 4 6\r\nabcdef\r\n",
		"HPUB a r 4 6\r\nabcdef\r\n":                "HPUB a r 4 6\r\nabcdef\r\n",
		"SUB a  q 1\r\n":                            "SUB a q 1\r\n",
		"UNSUB 1 5\r\n":                             "UNSUB 1 5\r\n",
		"CONNECT {\"user\":\"n1\"}\r\n":             "CONNECT {\"user\":\"n1\"}\r\n",
		"PUB a 3\r\nab\n\r\nPUB kt.lease 0\r\n\r\n": "PUB a 3\r\nab\n\r\n",
	} {
		o, err := read(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		} else if got := written(t, o); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"PUB a -1\r\n\r\n", "PUB a 1\r\nabc\r\n", "PUB a\r\n", "PUB a b c 1\r\nx\r\n", "PUB a 99999999999\r\n", "HPUB a 7 6\r\nabcdef\r\n",
		"HPUB a 70000 70000\r\n", "SUB a\r\n", "A+ x\r\n", "RMSG x\r\n", "\r\n", "PING x\r\n", "SUB a\rPUB 1\r\n", "SUB " + strings.Repeat("x", 5000) + " 1\r\n", "PUB a +1\r\nx\r\n"} {
		if o, err := read(in); err == nil {
			t.Errorf("%q is read as %+v", in, o)
		}
	}
}

// What the proxy writes, it reads in the same way: the server sees no operation that
// was not looked at.
func FuzzOperations(f *testing.F) {
	f.Add([]byte("HPUB a r 4 6\r\nabcdef\r\nPUB b 1\r\nx\r\nSUB a 1\r\n"))
	f.Add([]byte("PUB kt.use.n1 _INBOX.x 0\n\r\nUNSUB 1\r\nPING\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := &reader{r: bufio.NewReaderSize(bytes.NewReader(in), 64<<10)}
		for {
			o, err := r.next()
			if err != nil {
				return
			}
			text := written(t, o)
			again, err := read(text)
			if err != nil || written(t, again) != text {
				t.Fatalf("%q is read as %+v, %v", text, again, err)
			}
			if strings.Count(text, "\n") != 1+bytes.Count(o.payload, []byte("\n"))+map[bool]int{true: 1}[o.verb == "PUB"] {
				t.Fatalf("%q has more than one operation", text)
			}
		}
	})
}

func TestReadable(t *testing.T) {
	for body, want := range map[string]bool{"": true, "{}": true, `{"seq":7,"batch":256,"max_bytes":1048576}`: true, `{"last_by_subj":"kt.life.>"}`: false,
		`{"seq":1,"batch":257}`: false, `{"batch":-1}`: false, `{"max_bytes":999999999}`: false, `{"multi_last":[">"]}`: false, `{"Multi_last":[">"]}`: false,
		`{"multi\u005flast":[">"]}`: false, `{"subjects_filter":">"}`: false, `{"deleted_details":true}`: false, `{} {"multi_last":[">"]}`: false, `[`: false} {
		if got := (&op{header: -1, payload: []byte(body)}).readable(); got != want {
			t.Errorf("%s: %v", body, got)
		}
	}
}

// An answer ends the write that it is of, once, whatever else comes to its subject.
func TestWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands while it computes
		w := newWindow("KT_USE", useSubjects)
		ws := writes{byTo: map[string][]*write{}}
		for range writesAtOnce {
			begun, waited, err := w.begin(t.Context(), func() error { return nil })
			if err != nil || waited {
				t.Fatalf("waited %v, %v", waited, err)
			}
			ws.add([]byte("_INBOX.a"), begun)
		}
		under := func() int { return len(w.slots) }
		ack := []byte(`{"stream":"KT_USE","seq":1}`)
		for _, other := range [][]byte{[]byte(`{"stream":"KT_LEASE","seq":1}`), []byte(`{"type":"io.nats`), []byte("x"), nil} {
			ws.answered([]byte("_INBOX.a"), []byte("1"), other, false)
		}
		ws.answered([]byte("_INBOX.b"), []byte("1"), ack, false)
		for _, other := range []string{"NATS/1.0 503\r\n\r\n", "NATS/1.0 503\r\nNats-Subject: kt.lease.node.n1.1\r\n\r\n", "NATS/1.0 503\r\nNats-Subject: kt.use.n1\r\nNats-Stream: KT_USE\r\n\r\n",
			"NATS/1.0 503\r\nNats-Subject: kt.use.n1\r\n\r\nx", "NATS/1.0 404\r\nNats-Subject: kt.use.n1\r\n\r\n", string(ack)} {
			ws.answered([]byte("_INBOX.a"), []byte("1"), []byte(other), true)
		}
		if under() != writesAtOnce {
			t.Fatal("what is no answer ended a write")
		}
		for _, sid := range []string{"1", "2", "3", "1"} { // one subscription's count
			ws.answered([]byte("_INBOX.a"), []byte(sid), ack, false)
		}
		if under() != writesAtOnce-2 {
			t.Fatalf("%d writes are under way, want %d", under(), writesAtOnce-2)
		}
		ws.answered([]byte("_INBOX.a"), []byte("1"), []byte("NATS/1.0 503\r\nNats-Subject: kt.use.n1\r\n\r\n"), true)
		if under() != writesAtOnce-3 {
			t.Fatal("a write that nothing answers stays under way")
		}
		ws.unsubscribed([]byte("1"))
		ws.answered([]byte("_INBOX.a"), []byte("2"), ack, false)
		if under() != writesAtOnce-3 {
			t.Fatal("another subscription counts while writes are under way")
		}
		for range writesAtOnce {
			begun, _, err := w.begin(t.Context(), func() error { return nil }) // unanswered ones end by themselves
			if err != nil {
				t.Fatal(err)
			}
			ws.add([]byte("kt.own"), begun)
		}
		if len(ws.byTo["kt.own"]) != 0 {
			t.Error("an answer is awaited where the client may write itself")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range writesAtOnce {
			_, _, _ = w.begin(ended, func() error { return nil })
		}
		if _, _, err := w.begin(ended, func() error { return nil }); err == nil {
			t.Error("a full window admits a write")
		}
	})
}

// Whoever reads in bulk meets the limit of reads first, which cuts nobody off.
func TestReadersMeetReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands while it computes
		n := newNode("n1", Limits{})
		sub, unsub := &op{verb: "SUB"}, &op{verb: "UNSUB"}
		read := &op{verb: "PUB", header: -1, subject: []byte("kt.api.DIRECT.GET.KT_LIFE")}
		for range 2 * readsPerSecond {
			for _, o := range []*op{sub, read, unsub} {
				if waits, err := n.wait(t.Context(), o, func() error { return nil }); err != nil || o != read && len(waits) > 0 {
					t.Fatalf("%s waits for %v, %v", o.verb, waits, err)
				}
			}
		}
	})
}

// Before its login a client may send no payload, for which the proxy would keep room.
func TestNoPayloadBeforeLogin(t *testing.T) {
	r := &reader{r: bufio.NewReader(strings.NewReader("PUB a 3\r\nabc\r\n")), login: true}
	if o, err := r.next(); err == nil || cap(r.payload) > 0 {
		t.Errorf("%+v is read, with room for %d bytes", o, cap(r.payload))
	}
}

// Whatever nodes store and the auditor copies, all that is not copied fits.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const room = 1 << 24
		nodes := rapid.IntRange(1, 20).Draw(t, "nodes")
		var s Shares
		s.SetRoom(room, 1, nodes)
		if !s.Admit("n0", room) {
			t.Fatal("a share is kept before an auditor was heard")
		}
		s.Copied(0)
		type message struct {
			node string
			size int64
		}
		var stored []message // message i has sequence i+1
		copied := 0
		for range rapid.IntRange(1, 5000).Draw(t, "steps") {
			node := fmt.Sprint("n", rapid.IntRange(0, nodes-1).Draw(t, "node"))
			size := rapid.IntRange(1, 1<<16).Draw(t, "size")
			if rapid.IntRange(0, 500).Draw(t, "copies") == 0 {
				copied = rapid.IntRange(copied, len(stored)).Draw(t, "copied")
				s.Copied(uint64(copied))
			}
			if s.Admit(node, size) {
				stored = append(stored, message{node, int64(size)})
				s.Stored(node, uint64(len(stored)), int64(size))
			}
		}
		var total int64
		of := map[string]int64{}
		for _, m := range stored[copied:] {
			total += m.size
			of[m.node] += m.size
		}
		if total > room {
			t.Fatalf("%d bytes are not copied, of %d", total, room)
		}
		for i := range nodes { // each has what is left of its share
			node := fmt.Sprint("n", i)
			if of[node]+partMessages*(1<<16+overhead) < room/10*4/int64(nodes) && !s.Admit(node, 1) {
				t.Fatalf("%s has %d bytes and is refused", node, of[node])
			}
		}
	})
}

func TestLimitsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands while it computes
		n := newNode("n1", Limits{})
		o := &op{verb: "PUB", header: -1, subject: []byte("kt.lease.node.n1.x")}
		held := 0
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		for range 3 * leasesPerSecond {
			waits, err := n.wait(ctx, o, func() error { return nil })
			if len(waits) > 0 {
				held++
			}
			if err != nil {
				break
			}
		}
		if held == 0 {
			t.Error("300 leases at once wait for nothing")
		}
		if waits, err := n.wait(t.Context(), &op{verb: "PUB", header: -1, subject: []byte("kt.use.n1")}, nil); err != nil || len(waits) > 0 {
			t.Errorf("uses wait behind leases: %v, %v", waits, err)
		}
	})
}

// However many connections of one host come at once, none waits for longer than its
// client does, and other hosts do not wait.
func TestConnectionsOfOneHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{})
		defer p.Close()
		began := time.Now()
		var in, out atomic.Int64
		var all sync.WaitGroup
		for range 3000 {
			all.Go(func() {
				if p.pace("10.0.0.1") == nil {
					in.Add(1)
				} else {
					out.Add(1)
				}
			})
		}
		if err := p.pace("10.0.0.2"); err != nil || time.Since(began) > 0 {
			t.Errorf("another host waits %v: %v", time.Since(began), err)
		}
		all.Wait()
		if most := int64(connectsPerSecond * (4 + longestPace/time.Second)); time.Since(began) > longestPace || in.Load() < most-1 || in.Load() > most+1 {
			t.Errorf("after %v %d are let in and %d turned away, want %d in", time.Since(began), in.Load(), out.Load(), most)
		}
		if err := p.pace("10.0.0.1"); err != nil || time.Since(began) > longestPace+time.Second {
			t.Errorf("afterwards: %v", err)
		}
	})
}
