package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// RestoreConfig says what is restored, and into which streams.
type RestoreConfig struct {
	InitConfig
	From     events.Ancestor   // the log that the backup is of
	Older    []events.Ancestor // those that it was restored from itself, the newest first
	UseFirst uint64            // the first sequence that the backup has of KT_USE
	Bytes    map[string]int64  // how much is put in each stream, about
}

// Need returns the least MaxStore of which each stream's share holds the backup, with
// a tenth of it left.
func (c *RestoreConfig) Need() (bytes int64) {
	const unit = 1 << 20
	shares := c.InitConfig
	shares.MaxStore = unit
	for _, s := range []jetstream.StreamConfig{shares.life(c.From.Log), shares.read(c.From.Log), shares.use(c.From.Log)} {
		bytes = max(bytes, c.Bytes[s.Name]*unit/s.MaxBytes/9*10)
	}
	return bytes
}

// Restore is a restore that was begun. It is not safe for concurrent use.
//
// The new log has an id of its own: nothing that knows the old one takes it for the
// same log. Until Finish its streams carry streams.MetaRestoring, which
// streams.Identity refuses: no role, no init and no backup uses them.
//
//	crash anywhere before Finish has ended: KT_LIFE carries the mark; Abandon removes
//	                                        all of it, and the restore begins again
type Restore struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	c      RestoreConfig
	id     events.LogID
	stream string
	last   uint64 // stored in stream
	batch  []*nats.Msg
	bytes  int
}

// ErrInterrupted says that the server holds what a restore left that was broken off.
var ErrInterrupted = errors.New("the server holds a restore that was begun and not finished")

// BeginRestore makes the streams of a new log. nc must be the admin's. It refuses a
// server that holds a stream of Keytrail already: ErrInterrupted when a restore left
// it.
func BeginRestore(ctx context.Context, nc *nats.Conn, c RestoreConfig) (*Restore, error) {
	c.InitConfig = c.InitConfig.withDefaults()
	r := &Restore{nc: nc, c: c, id: events.LogID(ulid.Make())}
	var err error
	if r.js, err = jetstream.New(nc); err != nil {
		return nil, err
	}
	var found []string
	var interrupted bool
	err = whileForming(ctx, func(ctx context.Context) error {
		found, interrupted, err = leftovers(ctx, r.js)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case interrupted:
		return nil, ErrInterrupted
	case len(found) > 0:
		return nil, fmt.Errorf("the server holds the stream %s: a log is restored into an empty server only. Keep that log's store directory, and give the server an empty one", found[0])
	}
	if need := c.Need(); c.MaxStore < need {
		return nil, fmt.Errorf("the backup does not fit in the streams: want --max-store %d or more, not %d", need, c.MaxStore)
	}
	for i, config := range r.configs() {
		config.Metadata[streams.MetaRestoring] = c.From.Log.String()
		config.AllowAtomicPublish = true // Put stores batches
		config.Duplicates = time.Second  // of millions of events in two minutes, the ids would fill memory
		config.RePublish = nil           // nobody follows a log that is not there yet
		config.FirstSeq = []uint64{1, 1, c.UseFirst}[i]
		if err := r.create(ctx, config); err != nil {
			return nil, err
		}
	}
	// The new log has no checkpoint yet, and the old log's are of another origin.
	return r, r.create(ctx, r.c.checkpoint(r.id))
}

// create makes a stream. One that an earlier try has made is the same.
func (r *Restore) create(ctx context.Context, c jetstream.StreamConfig) error {
	err := whileForming(ctx, func(ctx context.Context) error {
		_, err := r.js.CreateStream(ctx, c)
		return err
	})
	if err != nil {
		return fmt.Errorf("stream %s: %w", c.Name, err)
	}
	return nil
}

// whileForming calls f again while the cluster is not ready, for a minute at most.
func whileForming(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		try, cancel := context.WithTimeout(ctx, initPatience)
		err := f(try)
		cancel()
		if err == nil || !forming(err) || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) || wait(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// ID returns the id of the new log.
func (r *Restore) ID() events.LogID { return r.id }

// configs returns the streams as they are in the end, KT_LIFE first.
func (r *Restore) configs() []jetstream.StreamConfig {
	c := r.c.InitConfig
	list := []jetstream.StreamConfig{c.life(r.id), c.read(r.id), c.use(r.id)}
	for i := range list {
		text, err := streams.EncodeRestored(append([]events.Ancestor{r.c.From}, r.c.Older...))
		if err != nil {
			panic(err) // ids and numbers
		}
		list[i].Metadata[streams.MetaRestored] = text
	}
	return list
}

// How much one atomic batch holds. The server takes 1,000 messages in one, and
// fsyncs once for all of them.
const (
	restoreMessages = 1000
	restoreBytes    = 4 << 20
)

// Put stores a message under its sequence. Streams come one after another, each from
// its first message on. Messages are stored in batches: Flush stores the rest. id is
// the event's id, "" for a message of KT_USE.
func (r *Restore) Put(ctx context.Context, stream string, seq uint64, subject, id string, data []byte) error {
	if stream != r.stream {
		if err := r.Flush(ctx); err != nil {
			return err
		}
		r.stream, r.last = stream, seq-1
	}
	if want := r.last + uint64(len(r.batch)) + 1; seq != want {
		return fmt.Errorf("restore %s: message %d: want %d", stream, seq, want)
	}
	m := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{}}
	if id != "" {
		m.Header.Set("Nats-Msg-Id", id)
		m.Header["Content-Type"] = []string{events.ContentType}
	}
	r.batch, r.bytes = append(r.batch, m), r.bytes+len(data)
	if len(r.batch) < restoreMessages && r.bytes < restoreBytes {
		return nil
	}
	return r.Flush(ctx)
}

// Flush stores what Put has gathered. On return it is durable.
func (r *Restore) Flush(ctx context.Context) error {
	if len(r.batch) == 0 {
		return nil
	}
	end := r.last + uint64(len(r.batch))
	var cause error
	for range restoreTries {
		if cause = r.send(ctx); cause == nil {
			break
		}
		// Whatever happened, the stream says what it has.
		last, err := r.end(ctx)
		if err == nil && last == end {
			cause = nil
			break
		}
		if err == nil && last != r.last {
			return fmt.Errorf("restore %s: it ends at %d after a batch from %d to %d: something else writes to it", r.stream, last, r.last+1, end)
		}
		if api := (*jetstream.APIError)(nil); errors.As(cause, &api) && api.Code < 500 || wait(ctx, 500*time.Millisecond) != nil {
			break
		}
	}
	if cause != nil {
		return fmt.Errorf("restore %s at %d: %w", r.stream, r.last+1, cause)
	}
	r.last, r.batch, r.bytes = end, nil, 0
	return nil
}

const restoreTries = 20

// end returns where the stream ends.
func (r *Restore) end(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, initPatience)
	defer cancel()
	s, err := r.js.Stream(ctx, r.stream)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

// send publishes the batch atomically (ADR-50), to stand after r.last.
func (r *Restore) send(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, initPatience)
	defer cancel()
	inbox := r.nc.NewInbox()
	sub, err := r.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	batch := nuid.Next()
	for i, m := range r.batch {
		m.Reply = ""
		m.Header.Set("Nats-Batch-Id", batch)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i == 0 {
			m.Reply = inbox
			m.Header.Set("Nats-Expected-Stream", r.stream)
			m.Header.Set("Nats-Expected-Last-Sequence", strconv.FormatUint(r.last, 10))
		}
		if i == len(r.batch)-1 {
			m.Reply = inbox
			m.Header.Set("Nats-Batch-Commit", "1")
		}
		if err := r.nc.PublishMsg(m); err != nil {
			return err
		}
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if m.Header.Get("Status") == "503" {
			return nats.ErrNoResponders
		}
		if len(m.Data) == 0 {
			continue // the first is taken
		}
		var ack struct {
			Error *jetstream.APIError `json:"error"`
			Seq   uint64              `json:"seq"`
		}
		if err := json.Unmarshal(m.Data, &ack); err != nil {
			return err
		}
		if ack.Error != nil {
			return ack.Error
		}
		if want := r.last + uint64(len(r.batch)); ack.Seq != want {
			return fmt.Errorf("the batch ends at %d, want %d", ack.Seq, want)
		}
		return nil
	}
}

// Finish makes the streams a log: it sets them up as Init does, takes away the mark,
// KT_LIFE's last, and makes what is rebuilt. Call it when what was restored has been
// read back and checked.
func (r *Restore) Finish(ctx context.Context) error {
	if err := r.Flush(ctx); err != nil {
		return err
	}
	configs := r.configs()
	for i := len(configs) - 1; i >= 0; i-- {
		if _, err := r.js.UpdateStream(ctx, configs[i]); err != nil {
			return fmt.Errorf("stream %s: %w", configs[i].Name, err)
		}
	}
	id, err := Init(ctx, r.nc, r.c.InitConfig)
	if err == nil && id != r.id {
		err = fmt.Errorf("the server holds log %s, and log %s was restored", id, r.id)
	}
	return err
}

// Abandon removes what a restore left that was broken off. It touches nothing but
// streams of a log whose KT_LIFE carries the mark: nothing has ever used them.
func Abandon(ctx context.Context, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	found, interrupted, err := leftovers(ctx, js)
	if err != nil {
		return err
	}
	if !interrupted {
		if len(found) > 0 {
			return fmt.Errorf("the server holds the stream %s, and no restore that was broken off: nothing is removed", found[0])
		}
		return nil
	}
	for i := len(found) - 1; i >= 0; i-- { // KT_LIFE, which has the mark, last
		if err := js.DeleteStream(ctx, found[i]); err != nil {
			return fmt.Errorf("stream %s: %w", found[i], err)
		}
	}
	return nil
}

// leftovers returns which streams of Keytrail the server holds, KT_LIFE first, and
// whether KT_LIFE carries the mark of a restore.
func leftovers(ctx context.Context, js jetstream.JetStream) (found []string, interrupted bool, err error) {
	lister := js.StreamNames(ctx)
	for name := range lister.Name() {
		if !strings.HasPrefix(name, "KT_") {
			continue
		}
		info, err := findStream(ctx, js, name)
		if err != nil {
			return nil, false, err
		}
		if info == nil {
			continue
		}
		found = append(found, name)
		if name == streams.Life && info.Config.Metadata[streams.MetaRestoring] != "" {
			interrupted = true
		}
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a, b)) })
	return found, interrupted, lister.Err()
}

func rank(stream string) int {
	if stream == streams.Life {
		return 0
	}
	return 1
}
