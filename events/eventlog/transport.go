package eventlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

// What the subjects of JetStream's API start with. A verifier's account has no
// JetStream of its own, and reaches what it may ask for under another name.
const (
	controlAPI = "$JS.API."
	edgeAPI    = "kt.api."
)

// transport is the connection that the clients share: one request and its answer,
// again while there is none, and what has been seen of the streams' state.
type transport struct {
	nc      *nats.Conn
	api     string // what the subjects of the API start with
	id      events.LogID
	timeout time.Duration
	log     *slog.Logger
	state   state
	health  health

	restored []events.Ancestor // the logs that this one was restored from

	readers atomic.Pointer[events.Release] // the highest release of a floor that was seen

	patience, lossStands time.Duration // the constants, but for tests
}

func newTransport(nc *nats.Conn, api string, timeout time.Duration, log *slog.Logger) *transport {
	return &transport{nc: nc, api: api, timeout: timeout, log: log, patience: patience, lossStands: lossStands}
}

// Readers returns the release that every process of the deployment has at least: that
// of the newest floor that was seen here.
func (t *transport) Readers() events.Release {
	if r := t.readers.Load(); r != nil {
		return *r
	}
	return events.FirstRelease
}

// wrote notes the release of a floor.
func (t *transport) wrote(r events.Release) {
	for {
		old := t.readers.Load()
		if old == nil && !events.FirstRelease.Before(r) || old != nil && !old.Before(r) || t.readers.CompareAndSwap(old, &r) {
			return
		}
	}
}

// bound gives ctx the log's own timeout.
func (t *transport) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, t.timeout)
}

// patience is how long one request waits before it is sent again: longer than
// any answer of a healthy server, shorter than the election of a new leader.
const patience = 2 * time.Second

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
	codeLastNotReady        = 10163 // a new leader does not know the subject's last sequence yet
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
func (t *transport) ask(ctx context.Context, subject string, req, resp any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	for r := (retry{}); ; {
		began := time.Now()
		err := t.askOnce(ctx, subject, body, resp)
		if api := (*apiError)(nil); err == nil || errors.As(err, &api) && api.Code != codeUnavailableHTTPLike {
			return err
		}
		t.doubt(began, err)
		if t.nc.IsClosed() || r.wait(ctx) != nil {
			return fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		}
	}
}

func (t *transport) askOnce(ctx context.Context, subject string, body []byte, resp any) error {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	m, err := t.nc.RequestWithContext(ctx, subject, body)
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

// Why an answer about a stream is not its leader's, or not for certain.
var (
	errNoLeader = errors.New("it has no leader; a majority of its servers cannot be reached")
	errMinority = errors.New("its leader has lost touch with the majority")
)

// info asks the leader about a stream. A missing one is ErrNoLog. While there is
// no leader a member answers with its own state, which may end before an
// acknowledged event: that is no answer.
func (t *transport) info(ctx context.Context, stream string) (*jetstream.StreamInfo, error) {
	for r := (retry{}); ; {
		var si jetstream.StreamInfo
		began := time.Now()
		err := t.ask(ctx, t.api+"STREAM.INFO."+stream, struct{}{}, &si)
		if api := (*apiError)(nil); errors.As(err, &api) && api.ErrCode == codeStreamNotFound {
			return nil, ErrNoLog
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stream, err)
		}
		switch {
		case leads(si.Cluster):
			t.trust()
			t.saw(&si)
			return &si, nil
		case si.Cluster.Leader != "":
			t.doubt(began, errMinority)
			return &si, nil
		}
		t.doubt(began, errNoLeader)
		if r.wait(ctx) != nil {
			return nil, fmt.Errorf("stream %s: %w: %w", stream, events.ErrUnavailable, errNoLeader)
		}
	}
}

// getRequest is the body of STREAM.MSG.GET and DIRECT.GET.
type getRequest struct {
	Seq     events.Seq `json:"seq,omitempty"`
	LastFor string     `json:"last_by_subj,omitempty"`
	NextFor string     `json:"next_by_subj,omitempty"`
	// MultiLast asks for the last message of each subject, in the order of the
	// sequences, as of one moment.
	MultiLast []string `json:"multi_last,omitempty"`
	Batch     int      `json:"batch,omitempty"`
	MaxBytes  int      `json:"max_bytes,omitempty"`
	NoHeaders bool     `json:"no_hdr,omitempty"` // only the end of a batch says where it stands
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
func (t *transport) leaderGet(ctx context.Context, stream string, req getRequest) (*stored, error) {
	var a struct {
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	err := t.ask(ctx, t.api+"STREAM.MSG.GET."+stream, req, &a)
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

// lastOf reads the last message of a subject; nil = none such. For control the
// stream's leader answers. A verifier may ask for a few subjects only, each by its
// name, and any server that holds the stream answers, which may be behind.
func (t *transport) lastOf(ctx context.Context, stream, subject string) (*stored, error) {
	if t.api != edgeAPI {
		return t.leaderGet(ctx, stream, getRequest{LastFor: subject})
	}
	for r := (retry{}); ; {
		began := time.Now()
		s, err := t.directLast(ctx, stream, subject)
		if err == nil {
			return s, nil
		}
		t.doubt(began, err)
		if t.nc.IsClosed() || r.wait(ctx) != nil {
			return nil, fmt.Errorf("read %s: %w: %w", stream, events.ErrUnavailable, err)
		}
	}
}

func (t *transport) directLast(ctx context.Context, stream, subject string) (*stored, error) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	m, err := t.nc.RequestWithContext(ctx, t.api+"DIRECT.GET."+stream+"."+subject, nil)
	if err != nil {
		return nil, err
	}
	// Who stored a message may have given it a status, but not the server's marks.
	if said(m, "Nats-Stream") == "" && m.Header.Get("Status") == "404" {
		return nil, nil
	}
	s, err := fromReply(m, stream)
	if err != nil {
		return nil, err
	}
	if s.subject != subject {
		return nil, errors.New("an answer to another question came")
	}
	return &s, nil
}

// said returns what the server says in a header of its own. It appends to what the
// message was stored with, so that whoever stored it cannot say it first.
func said(m *nats.Msg, header string) string {
	v := m.Header[header]
	if len(v) == 0 {
		return ""
	}
	return v[len(v)-1]
}

// fromReply reads a message that was got directly or published again: where it
// stands is in headers of the server's own.
func fromReply(m *nats.Msg, stream string) (stored, error) {
	if said(m, "Nats-Stream") != stream {
		return stored{}, fmt.Errorf("a message came that is not of %s", stream)
	}
	seq, err := strconv.ParseUint(said(m, "Nats-Sequence"), 10, 64)
	if err != nil {
		return stored{}, fmt.Errorf("a message of the log came without its sequence: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, said(m, "Nats-Time-Stamp"))
	if err != nil {
		return stored{}, fmt.Errorf("message %d of the log came without its time: %w", seq, err)
	}
	return stored{seq: events.Seq(seq), at: events.At(at), subject: said(m, "Nats-Subject"), header: m.Header, data: m.Data}, nil
}
