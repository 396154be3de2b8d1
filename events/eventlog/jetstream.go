package eventlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

// Options say how a log is opened.
type Options struct {
	// Edge says that the connection is a verifier's: KT_TIMER is out of its
	// reach, and of KT_USE only appending and a node's own tail are not.
	Edge bool
	// AtLeast is a position that is known to have been acknowledged, from a
	// snapshot, a marker file or ClickHouse. A log that ends before it has lost
	// events and is refused, one with another identity too. Zero = unknown.
	AtLeast events.Position
	// Replicas that the streams should have; 0 = any.
	Replicas int
	// Timeout bounds a call whose context has no nearer deadline. It should
	// outlast the election of a new leader (4 to 7 s). Default 10 s.
	Timeout time.Duration
	Logger  *slog.Logger // default none
}

// Log is Keytrail's log on JetStream: events.Log, events.UseSink,
// events.UseSource and events.Timers. It is safe for concurrent use and owns
// nothing but memory: whoever made the connection closes it.
type Log struct {
	nc      *nats.Conn
	api     string // what the subjects of the API start with
	id      events.LogID
	timeout time.Duration
	log     *slog.Logger
	uses    useClock
}

var (
	_ events.Log       = (*Log)(nil)
	_ events.UseSink   = (*Log)(nil)
	_ events.UseSource = (*Log)(nil)
	_ events.Timers    = (*Log)(nil)
)

// Open opens the log that the server of nc holds. It creates nothing. It
// refuses, with a sentence that says what to do, when the log is missing
// (ErrNoLog), foreign, changed in its settings, has lost a message, or ends
// before Options.AtLeast. Whether every event can be read and every history is
// whole is for Check to say. Errors: events.ErrUnavailable when the server does
// not answer; anything else no retry mends.
func Open(ctx context.Context, nc *nats.Conn, o Options) (*Log, error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{nc: nc, api: "$JS.API.", timeout: o.Timeout, log: o.Logger}
	if o.Edge {
		l.api = "kt.api."
	}
	if err := l.check(ctx, &o); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return l, nil
}

// check verifies what STREAM.INFO tells (L5).
func (l *Log) check(ctx context.Context, o *Options) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	life, err := l.info(ctx, lifeStream)
	if err != nil {
		return err
	}
	if l.id, err = identity(&life.Config); err != nil {
		return err
	}
	want := lifeConfig(l.id, cmpReplicas(o.Replicas, life), 1)
	if err := compare(&life.Config, &want); err != nil {
		return err
	}
	if err := contiguous(&life.State); err != nil {
		return err
	}
	if err := l.reaches(o.AtLeast, events.Seq(life.State.LastSeq)); err != nil {
		return err
	}
	if o.Edge {
		return nil
	}
	const again = "it can be rebuilt from KT_LIFE; run the initialisation again, it makes what is missing"
	if life.State.Consumers == 0 {
		return fmt.Errorf("stream %s has lost its consumer %s: %s", lifeStream, timersConsumer, again)
	}
	for _, name := range []string{useStream, timerStream} {
		si, err := l.info(ctx, name)
		if errors.Is(err, ErrNoLog) {
			return fmt.Errorf("stream %s is missing: %s", name, map[string]string{
				useStream:   "uses that the auditor has not read may be lost; restore the server's store directory or a backup",
				timerStream: again}[name])
		}
		if err != nil {
			return err
		}
		id, err := identity(&si.Config)
		if err != nil {
			return err
		}
		if id != l.id {
			return fmt.Errorf("stream %s belongs to log %s, KT_LIFE to log %s: the server's store holds parts of two installations; restore one whole backup", name, id, l.id)
		}
		want := useConfig(l.id, cmpReplicas(o.Replicas, si), 1, 1)
		if name == timerStream {
			want = timerConfig(l.id, cmpReplicas(o.Replicas, si), 1)
		}
		if err := compare(&si.Config, &want); err != nil {
			return err
		}
		if name == timerStream && si.State.Consumers == 0 {
			return fmt.Errorf("stream %s has lost its consumer %s: %s", timerStream, expirerConsumer, again)
		}
	}
	return nil
}

func cmpReplicas(want int, si *jetstream.StreamInfo) int {
	if want == 0 {
		return si.Config.Replicas
	}
	return want
}

// contiguous refuses a stream that does not hold every sequence from 1 on. The
// server itself tells such a loss nowhere.
func contiguous(s *jetstream.StreamState) error {
	const todo = "Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup"
	if s.LastSeq > 0 && s.FirstSeq != 1 {
		return &events.CorruptError{Seq: 1, Reason: fmt.Sprintf("the log begins at event %d: events 1 to %d are gone. %s", s.FirstSeq, s.FirstSeq-1, todo)}
	}
	if s.NumDeleted != 0 || s.Msgs != s.LastSeq {
		return &events.CorruptError{Reason: fmt.Sprintf("the log has %d events but its last is number %d: %d are gone. %s", s.Msgs, s.LastSeq, s.LastSeq-s.Msgs, todo)}
	}
	return nil
}

func (l *Log) reaches(p events.Position, last events.Seq) error {
	if p == (events.Position{}) {
		return nil
	}
	if p.Log != l.id {
		return fmt.Errorf("this is log %s, but log %s was used here before: connect to the right server, or remove what was kept of the other log (snapshots, marker, tables)", l.id, p.Log)
	}
	if last < p.Seq {
		return &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the log ends at event %d, but event %d was acknowledged and has been seen: "+
			"the end of the log is lost. Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", last, p.Seq)}
	}
	return nil
}

// ID implements events.Log.
func (l *Log) ID() events.LogID { return l.id }

// bound gives ctx the log's own timeout.
func (l *Log) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.timeout)
}

// patience is how long one request waits before it is sent again: longer than
// any answer of a healthy server, shorter than the election of a new leader.
const patience = 2 * time.Second

// pause lies between two tries.
const pause = 20 * time.Millisecond

// apiError is a refusal by JetStream.
type apiError struct {
	Code    int    `json:"code"`
	ErrCode int    `json:"err_code"`
	Text    string `json:"description"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%s (%d)", e.Text, e.ErrCode) }

// The refusals of JetStream that we tell apart (server/errors.json).
const (
	codeStreamNotFound      = 10059
	codeNoMessage           = 10037
	codeWrongLast           = 10071 // the expectation does not hold
	codeWrongLastConstant   = 10164 // the same on a cluster or in a batch: in conflict with a write in flight
	codeDuplicateInFlight   = 10158 // the same Nats-Msg-Id is in flight
	codeDuplicateInBatch    = 10201 // an event of the batch is stored already
	codeIncompleteBatch     = 10176 // the batch was lost, by a new leader or a lost message
	codeTooManyBatches      = 10210
	codeTooManyRequests     = 10167
	codeStoreFailed         = 10077 // maximum bytes or messages
	codeInsufficient        = 10023
	codeMemoryExceeded      = 10028
	codeStorageExceeded     = 10047
	codeAccountExceeded     = 10002
	codeMessageTooBig       = 10054
	codeUnavailableHTTPLike = 503
)

// ask sends one read request to the leader and decodes the answer, trying again
// until ctx ends. Reads are safe to repeat.
func (l *Log) ask(ctx context.Context, subject string, req, resp any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	for {
		err := l.askOnce(ctx, subject, body, resp)
		if api := (*apiError)(nil); err == nil || errors.As(err, &api) && api.Code != codeUnavailableHTTPLike {
			return err
		}
		if l.nc.IsClosed() || waitFor(ctx, pause) != nil {
			return fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		}
	}
}

func (l *Log) askOnce(ctx context.Context, subject string, body []byte, resp any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := l.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return err
	}
	var e struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &e); err != nil {
		return fmt.Errorf("answer to %s: %w", subject, err)
	}
	if e.Error != nil {
		return e.Error
	}
	return json.Unmarshal(m.Data, resp)
}

// info asks the leader about a stream. A missing one is ErrNoLog. While there is
// no leader a member answers with its own state, which may end before an
// acknowledged event: that is no answer.
func (l *Log) info(ctx context.Context, stream string) (*jetstream.StreamInfo, error) {
	for {
		var si jetstream.StreamInfo
		err := l.ask(ctx, l.api+"STREAM.INFO."+stream, struct{}{}, &si)
		if api := (*apiError)(nil); errors.As(err, &api) && api.ErrCode == codeStreamNotFound {
			return nil, ErrNoLog
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stream, err)
		}
		if si.Cluster == nil || si.Cluster.Leader != "" {
			return &si, nil
		}
		if waitFor(ctx, pause) != nil {
			return nil, fmt.Errorf("stream %s: %w: it has no leader; a majority of its servers cannot be reached", stream, events.ErrUnavailable)
		}
	}
}

// Last implements events.Log: the stream's leader answers.
func (l *Log) Last(ctx context.Context) (events.Seq, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	si, err := l.info(ctx, lifeStream)
	if err != nil {
		return 0, err
	}
	return events.Seq(si.State.LastSeq), nil
}

// getRequest is the body of STREAM.MSG.GET and DIRECT.GET.
type getRequest struct {
	Seq      events.Seq `json:"seq,omitempty"`
	LastFor  string     `json:"last_by_subj,omitempty"`
	NextFor  string     `json:"next_by_subj,omitempty"`
	Batch    int        `json:"batch,omitempty"`
	MaxBytes int        `json:"max_bytes,omitempty"`
}

// stored is one message as the stream holds it.
type stored struct {
	seq     events.Seq
	at      events.Time // by the server's clock
	subject string
	header  nats.Header
	data    []byte
}

// leaderGet reads one message through the stream's leader; nil = none such.
func (l *Log) leaderGet(ctx context.Context, stream string, req getRequest) (*stored, error) {
	var a struct {
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	err := l.ask(ctx, l.api+"STREAM.MSG.GET."+stream, req, &a)
	if api := (*apiError)(nil); errors.As(err, &api) && api.ErrCode == codeNoMessage {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", stream, err)
	}
	s := &stored{seq: events.Seq(a.Message.Seq), at: events.At(a.Message.Time), subject: a.Message.Subject, data: a.Message.Data}
	if want := cmp.Or(req.LastFor, req.NextFor, s.subject); s.subject != want || s.seq < req.Seq {
		return nil, fmt.Errorf("read %s: %w: an answer to another question came", stream, events.ErrUnavailable)
	}
	if len(a.Message.Header) > 0 {
		if s.header, err = nats.DecodeHeadersMsg(a.Message.Header); err != nil {
			return nil, unreadable(s.seq, err)
		}
	}
	return s, nil
}

// fromReply reads a message that was got directly or published again: where it
// stands is in headers of the server's own.
func fromReply(m *nats.Msg, stream string) (stored, error) {
	if m.Header.Get("Nats-Stream") != stream {
		return stored{}, fmt.Errorf("a message came that is not of %s", stream)
	}
	seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return stored{}, fmt.Errorf("a message of the log came without its sequence: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
	if err != nil {
		return stored{}, fmt.Errorf("message %d of the log came without its time: %w", seq, err)
	}
	return stored{seq: events.Seq(seq), at: events.At(at), subject: m.Header.Get("Nats-Subject"), header: m.Header, data: m.Data}, nil
}

// decode turns a stored message into its event. The error is a *CorruptError.
func (s *stored) decode() (events.Recorded, error) {
	m := events.Message{Subject: s.subject, Header: s.header, Data: s.data}
	e, err := events.Decode(&m)
	if err != nil {
		return events.Recorded{}, unreadable(s.seq, err)
	}
	return events.Recorded{Event: e, Seq: s.seq, Stored: s.at, Hash: m.Hash()}, nil
}

// unreadable wraps what decoding says: an unknown type asks for an upgrade,
// anything else for a restore.
func unreadable(seq events.Seq, err error) error {
	if unknown := (*events.UnknownTypeError)(nil); errors.As(err, &unknown) {
		return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d: %s", seq, unknown.Error())}
	}
	return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d cannot be read (%v): something other than Keytrail wrote to the log, or its store is damaged. "+
		"Stop here, and restore the log from its archive mirror or a backup", seq, err)}
}

// Load implements events.Log. The leader says which event is the aggregate's
// last; the rest may come from any replica, and is asked for again until it
// reaches that one (L4).
func (l *Log) Load(ctx context.Context, a events.Aggregate) ([]events.Recorded, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	if err := a.Validate(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	history, err := l.load(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", a, err)
	}
	return history, nil
}

// LastOf implements events.LastOfLog: the stream's leader answers (L4).
func (l *Log) LastOf(ctx context.Context, a events.Aggregate) (r events.Recorded, ok bool, err error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	if err := a.Validate(); err != nil {
		return r, false, fmt.Errorf("last event: %w", err)
	}
	s, err := l.leaderGet(ctx, lifeStream, getRequest{LastFor: a.Subject()})
	if err != nil {
		return r, false, fmt.Errorf("last event of %s: %w", a, err)
	}
	if s == nil {
		return r, false, nil
	}
	if r, err = s.decode(); err != nil {
		return r, false, fmt.Errorf("last event of %s: %w", a, err)
	}
	return r, true, nil
}

func (l *Log) load(ctx context.Context, a events.Aggregate) ([]events.Recorded, error) {
	msg, err := l.leaderGet(ctx, lifeStream, getRequest{LastFor: a.Subject()})
	if msg == nil || err != nil {
		return nil, err
	}
	last, err := msg.decode()
	if err != nil {
		return nil, err
	}
	if last.Rev == 1 {
		return chained([]events.Recorded{last})
	}
	history := make([]events.Recorded, 0, last.Rev)
	for {
		next := events.Seq(1)
		if n := len(history); n > 0 {
			next = history[n-1].Seq + 1
		}
		err := l.get(ctx, lifeStream, getRequest{Seq: next, NextFor: a.Subject(), Batch: 512, MaxBytes: 4 << 20}, func(s *stored) error {
			r, err := s.decode()
			if err == nil {
				history = append(history, r)
			}
			return err
		})
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return nil, err
		}
		if n := len(history); n > 0 && history[n-1].Seq >= last.Seq {
			return chained(history)
		}
		if err == nil && len(history) > 0 && history[len(history)-1].Seq >= next {
			continue // the answer was full
		}
		// The replica that answered is behind the leader, or nobody answered.
		if waitFor(ctx, pause) != nil || l.nc.IsClosed() {
			return nil, fmt.Errorf("%w: no replica gave the history up to event %d", events.ErrUnavailable, last.Seq)
		}
	}
}

// chained verifies that a whole history continues from rev 1 on.
func chained(history []events.Recorded) ([]events.Recorded, error) {
	var c events.Chain
	var err error
	for i := range history {
		if c, err = c.Advance(&history[i]); err != nil {
			return nil, &events.CorruptError{Seq: history[i].Seq, Reason: err.Error()}
		}
	}
	return history, nil
}
