package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
)

// talk is what one script has learned so far.
type talk struct {
	url  string
	bin  string
	env  *testscript.Env
	vars map[string]string // what answers captured, "root" and "regimes"

	archive *txtar.Archive // of the script, once -update has changed it
}

type talkKey struct{}

// exchange [-wait] NAME... sends the request of each section and compares the
// answer. With -wait it asks again until the answer is as written, for what
// follows a change with a delay; only what changes nothing can be asked again.
func exchange(ts *testscript.TestScript, neg bool, args []string) {
	wait := len(args) > 0 && args[0] == "-wait"
	if wait {
		args = args[1:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: exchange [-wait] NAME...")
	}
	t := ts.Value(talkKey{}).(*talk)
	for _, name := range args {
		e, err := readExchange(ts.ReadFile(name))
		if err != nil {
			ts.Fatalf("%s: %v", name, err)
		}
		if wait && !e.repeatable() {
			ts.Fatalf("%s: -wait would send a change more than once", name)
		}
		limit := patience
		if *update {
			limit = 5 * time.Second
		}
		deadline := time.Now().Add(limit)
		for {
			var got *reply
			if got, err = t.send(e); err != nil {
				ts.Fatalf("%s: %v", name, err)
			}
			if err = t.compare(e, got); err == nil {
				break
			}
			if !wait || time.Now().After(deadline) {
				if *update {
					err = t.update(ts, name, e, got)
				}
				if err != nil {
					ts.Fatalf("%s: %v", name, err)
				}
				break
			}
			time.Sleep(50 * time.Millisecond) // a real process on the other side: poll, do not wait blindly
		}
		for name, value := range t.vars {
			ts.Setenv(name, value)
		}
	}
}

// conversation is one section of a script: a request and the answer it must
// get, or a command and what it must print.
type conversation struct {
	command []string // of "$ keytrail …"; nil for a request

	method, path string
	header       [][2]string
	body         string

	status string      // "HTTP/1.1 200 OK", or "exit 1"
	want   [][2]string // headers of the answer; "!Name" must be absent
	answer string      // its body, or what the command prints
}

func (c *conversation) repeatable() bool {
	return c.command != nil || c.method == http.MethodGet || strings.HasPrefix(c.path, "/v1/verify")
}

func readExchange(text string) (*conversation, error) {
	if line, rest, _ := strings.Cut(text, "\n"); strings.HasPrefix(line, "$ ") {
		c := &conversation{status: "exit 0", answer: rest}
		for _, word := range regexp.MustCompile(`'[^']*'|\S+`).FindAllString(line[2:], -1) {
			c.command = append(c.command, strings.Trim(word, "'"))
		}
		if len(c.command) == 0 || c.command[0] != "keytrail" {
			return nil, errors.New("want a command of keytrail")
		}
		if first, rest, _ := strings.Cut(rest, "\n"); strings.HasPrefix(first, "exit ") {
			c.status, c.answer = first, rest
		}
		return c, nil
	}
	request, answer, ok := strings.Cut("\n"+text, "\nHTTP/")
	if !ok {
		return nil, errors.New("no answer: want a line that begins with HTTP/")
	}
	c := new(conversation)
	var first string
	var err error
	if first, c.header, c.body, err = readMessage(request); err != nil {
		return nil, err
	}
	if c.method, c.path, ok = strings.Cut(first, " "); !ok {
		return nil, fmt.Errorf("%q: want a method and a path", first)
	}
	c.status, c.want, c.answer, err = readMessage("HTTP/" + answer)
	return c, err
}

func readMessage(text string) (first string, header [][2]string, body string, err error) {
	head, body, _ := strings.Cut(strings.TrimLeft(text, "\n"), "\n\n")
	first, rest, _ := strings.Cut(strings.TrimSuffix(head, "\n"), "\n")
	for line := range strings.SplitSeq(rest, "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok && !strings.HasPrefix(line, "!") {
			return "", nil, "", fmt.Errorf("%q: want a header", line)
		}
		header = append(header, [2]string{name, strings.TrimSpace(value)})
	}
	return strings.TrimSpace(first), header, strings.TrimSpace(body), nil
}

// reply is what came back.
type reply struct {
	status string
	header http.Header
	body   string
}

func (t *talk) send(e *conversation) (*reply, error) {
	if e.command != nil {
		return t.runCommand(e)
	}
	var missing []string
	fill := func(s string) string {
		out, m := t.fill(s)
		missing = append(missing, m...)
		return out
	}
	req, err := http.NewRequest(e.method, t.url+fill(e.path), strings.NewReader(fill(e.body)))
	if err != nil {
		return nil, err
	}
	for _, h := range e.header {
		req.Header.Add(h[0], fill(h[1]))
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("nothing captured %v yet", missing)
	}
	resp, err := plainTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(resp.Header.Get("Content-Type"), "json") && !jsontext.Value(b).IsValid() {
		return nil, fmt.Errorf("the answer is no JSON: %s", b)
	}
	return &reply{resp.Proto + " " + resp.Status, resp.Header, strings.TrimSpace(string(b))}, nil
}

// plainTransport adds no header of its own to speak of.
var plainTransport = &http.Transport{DisableCompression: true}

func (t *talk) runCommand(e *conversation) (*reply, error) {
	args := make([]string, len(e.command)-1)
	for i, word := range e.command[1:] {
		var missing []string
		if args[i], missing = t.fill(word); len(missing) > 0 {
			return nil, fmt.Errorf("nothing captured %v yet", missing)
		}
	}
	cmd := exec.Command(t.bin, args...)
	cmd.Env, cmd.Dir = t.env.Vars, t.env.WorkDir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	return &reply{status: fmt.Sprintf("exit %d", cmd.ProcessState.ExitCode()), body: strings.TrimSpace(out.String() + errs.String())}, nil
}

var reference = regexp.MustCompile(`\{([a-z][a-z0-9_]*)(?::(\d+))?\}`)

// fill puts what was captured in place of {name}, or its first n characters in
// place of {name:n}.
func (t *talk) fill(s string) (out string, missing []string) {
	out = reference.ReplaceAllStringFunc(s, func(ref string) string {
		m := reference.FindStringSubmatch(ref)
		v, ok := t.vars[m[1]]
		if !ok {
			missing = append(missing, m[1])
			return ref
		}
		if m[2] != "" {
			n, _ := strconv.Atoi(m[2])
			v = v[:min(n, len(v))]
		}
		return v
	})
	return out, missing
}

// compare holds the answer to what the section says, and keeps what it captures.
func (t *talk) compare(e *conversation, got *reply) error {
	learned := map[string]string{}
	if e.status != got.status {
		return fmt.Errorf("answered %s, want %s\n%s", got.status, e.status, got.body)
	}
	for _, h := range e.want {
		if name, absent := strings.CutPrefix(h[0], "!"); absent {
			if v, ok := got.header[http.CanonicalHeaderKey(name)]; ok {
				return fmt.Errorf("header %s: %q, want none", name, v)
			}
			continue
		}
		values := got.header.Values(h[0])
		if len(values) != 1 || !t.match(h[1], values[0], learned) {
			return fmt.Errorf("header %s: %q, want %q once", h[0], values, h[1])
		}
	}
	want, err := layout(e.answer)
	if err != nil {
		return fmt.Errorf("the expectation: %w", err)
	}
	have, err := layout(got.body)
	if err != nil {
		return fmt.Errorf("the answer: %w", err)
	}
	for i := range max(len(want), len(have)) {
		switch {
		case i >= len(have):
			return fmt.Errorf("the answer ends before %q\n%s", want[i], strings.Join(have, "\n"))
		case i >= len(want):
			return fmt.Errorf("the answer goes on with %q\n%s", have[i], strings.Join(have, "\n"))
		case !t.match(want[i], have[i], learned):
			return fmt.Errorf("line %d of the answer differs\nhave %s\nwant %s\n\n%s", i+1, have[i], want[i], strings.Join(have, "\n"))
		}
	}
	for name, value := range learned {
		t.vars[name] = value
	}
	return nil
}

// kinds are the placeholders of what is different every time.
var kinds = map[string]string{
	"any":    `[^"]+`,
	"time":   `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z`,
	"number": `\d+`,
	"id":     `[a-z]+_[0-9A-Z]{26}`,
	"role":   `key_[0-9a-z]{26}`, // made with a key

	"days": `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z`, // <days*n>: n days from now

	"hex":       `[0-9a-f]`,
	"base62":    `[0-9A-Za-z]`,
	"base58":    `[1-9A-HJ-NP-Za-km-z]`,
	"base32":    `[a-z2-7A-Z]`,
	"base64url": `[0-9A-Za-z_-]`,
}

var placeholder = regexp.MustCompile(`<([a-z0-9]+)(?:\*(\d+))?(?::([a-z][a-z0-9_]*))?>`)

// match compares one line with placeholders: <kind>, <kind*n> for n characters
// of an alphabet, and <kind:name> to keep what stands there as {name}.
func (t *talk) match(want, have string, learned map[string]string) bool {
	want, _ = t.fill(want) // what was not kept may be meant as it stands
	var re strings.Builder
	var names []string
	var days []int // from now, of each placeholder; 0 for others than <days*n>
	re.WriteString("^")
	at := 0
	for _, m := range placeholder.FindAllStringSubmatchIndex(want, -1) {
		kind, ok := kinds[want[m[2]:m[3]]]
		if !ok {
			continue
		}
		re.WriteString(regexp.QuoteMeta(want[at:m[0]]))
		at = m[1]
		n := 0
		switch {
		case m[4] >= 0 && want[m[2]:m[3]] == "days":
			n, _ = strconv.Atoi(want[m[4]:m[5]])
		case m[4] >= 0:
			kind += "{" + want[m[4]:m[5]] + "}"
		}
		days = append(days, n)
		name := ""
		if m[6] >= 0 {
			name = want[m[6]:m[7]]
		}
		names = append(names, name)
		re.WriteString("(" + kind + ")")
	}
	re.WriteString(regexp.QuoteMeta(want[at:]) + "$")
	found := regexp.MustCompile(re.String()).FindStringSubmatch(have)
	if found == nil {
		return false
	}
	for i, name := range names {
		if days[i] > 0 {
			at, err := time.Parse(time.RFC3339, found[i+1])
			if err != nil || (time.Until(at)-time.Duration(days[i])*24*time.Hour).Abs() > time.Minute {
				return false
			}
		}
		if name == "" {
			continue
		}
		if before, ok := learned[name]; ok && before != found[i+1] {
			return false
		}
		learned[name] = found[i+1]
	}
	return true
}
