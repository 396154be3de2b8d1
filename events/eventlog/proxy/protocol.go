package proxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// maxLine is the most bytes of one line of the protocol, as nats-server has it.
const maxLine = 4096

// op is one operation that a client asks of the server.
type op struct {
	verb string // PUB, SUB, UNSUB, PING, PONG or CONNECT; PUB stands for HPUB too
	args []byte // of all but PUB

	subject, reply []byte // of PUB; no reply = empty
	header         int    // bytes of the payload that are headers; -1 = PUB without headers
	payload        []byte
}

// reader reads a client's operations.
type reader struct {
	r       *bufio.Reader
	login   bool // only a login is awaited: no payload is read
	payload []byte
}

// next reads the next operation, which is good until the next call. What it does not
// understand is an error, so the server never sees a line that the proxy has read in
// another way.
func (r *reader) next() (op, error) {
	line, err := readLine(r.r)
	if err != nil {
		return op{}, err
	}
	verb, rest := line, []byte(nil)
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		verb, rest = line[:i], line[i+1:]
	}
	o := op{verb: string(bytes.ToUpper(verb))}
	switch o.verb {
	case "CONNECT":
		o.args = bytes.TrimSpace(rest)
		return o, nil
	case "PING", "PONG":
		if len(bytes.TrimSpace(rest)) > 0 {
			return op{}, fmt.Errorf("%s takes no arguments", o.verb)
		}
		return o, nil
	case "SUB", "UNSUB":
		args := bytes.Fields(rest)
		least := map[string]int{"SUB": 2, "UNSUB": 1}[o.verb]
		if len(args) < least || len(args) > least+1 {
			return op{}, fmt.Errorf("%s has %d arguments", o.verb, len(args))
		}
		o.args = bytes.Join(args, []byte(" "))
		return o, nil
	case "PUB", "HPUB":
		return r.publish(o, bytes.Fields(rest))
	}
	return op{}, errors.New("unknown operation")
}

// publish reads what follows PUB and HPUB: subject, [reply], [header size], size, and
// then the payload.
func (r *reader) publish(o op, args [][]byte) (op, error) {
	sizes := 1
	if o.header = -1; o.verb == "HPUB" {
		sizes = 2
	}
	if o.verb = "PUB"; len(args) != sizes+1 && len(args) != sizes+2 {
		return op{}, fmt.Errorf("PUB has %d arguments", len(args))
	}
	size, err := strconv.ParseUint(string(args[len(args)-1]), 10, 31)
	if err != nil || size > streams.MaxPayload {
		return op{}, fmt.Errorf("a payload has at most %d bytes", streams.MaxPayload)
	}
	if sizes == 2 {
		header, err := strconv.ParseUint(string(args[len(args)-2]), 10, 31)
		if err != nil || header > size || header > streams.HeaderRoom {
			return op{}, fmt.Errorf("headers have at most %d bytes", streams.HeaderRoom)
		}
		o.header = int(header)
	}
	if r.login {
		return op{}, errors.New("want a login first")
	}
	// The line is in the reader's buffer, which the payload overwrites.
	args = bytes.Fields(bytes.Join(args[:len(args)-sizes], []byte(" ")))
	if o.subject = args[0]; len(args) == 2 {
		o.reply = args[1]
	}
	n := int(size) + 2
	if cap(r.payload) < n {
		r.payload = make([]byte, n)
	}
	o.payload = r.payload[:n]
	if _, err := io.ReadFull(r.r, o.payload); err != nil {
		return op{}, err
	}
	if !bytes.HasSuffix(o.payload, crlf) {
		return op{}, errors.New("a payload is not as long as said")
	}
	o.payload = o.payload[:size]
	return o, nil
}

var crlf = []byte("\r\n")

// readLine reads a line without its end. It is good until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	line = bytes.TrimSuffix(line[:len(line)-1], []byte("\r"))
	if len(line) > maxLine || bytes.IndexByte(line, '\r') >= 0 {
		return nil, fmt.Errorf("a line has at most %d bytes", maxLine)
	}
	return line, nil
}

// write writes the operation in its one canonical form.
func (o *op) write(w *bufio.Writer) error {
	w.WriteString(map[bool]string{false: o.verb, true: "HPUB"}[o.verb == "PUB" && o.header >= 0])
	if o.verb != "PUB" {
		if len(o.args) > 0 {
			w.WriteByte(' ')
			w.Write(o.args)
		}
		_, err := w.Write(crlf)
		return err
	}
	w.WriteByte(' ')
	w.Write(o.subject)
	if len(o.reply) > 0 {
		w.WriteByte(' ')
		w.Write(o.reply)
	}
	if o.header >= 0 {
		w.WriteByte(' ')
		w.WriteString(strconv.Itoa(o.header))
	}
	w.WriteByte(' ')
	w.WriteString(strconv.Itoa(len(o.payload)))
	w.Write(crlf)
	w.Write(o.payload)
	_, err := w.Write(crlf)
	return err
}

// user returns the name that a CONNECT logs in with, read as nats-server reads it.
func (o *op) user() (string, error) {
	var login struct {
		User string `json:"user"`
	}
	err := json.Unmarshal(o.args, &login)
	return login.User, err
}

// The most that one request for messages may ask for: what a follower asks for.
const (
	maxBatch = 256
	maxBytes = 4 << 20
)

// readable reports whether a request for messages is one that a node has a use for: it
// reads by sequence. Other members of the request (multi_last, subjects_filter,
// deleted_details, and last_by_subj with a wildcard) make the server walk the whole
// stream.
func (o *op) readable() bool {
	body := o.payload[max(o.header, 0):]
	if len(body) == 0 {
		return true
	}
	var r struct {
		Seq      uint64 `json:"seq"`
		Batch    int    `json:"batch"`
		MaxBytes int    `json:"max_bytes"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil || d.More() {
		return false
	}
	return r.Batch >= 0 && r.Batch <= maxBatch && r.MaxBytes >= 0 && r.MaxBytes <= maxBytes
}
