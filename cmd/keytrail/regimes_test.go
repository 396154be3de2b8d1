package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata/regimes")

const (
	scripts   = "testdata/regimes"
	regimeDir = "../../deploy/regimes"
)

// TestRegimes runs the scripts that hold the shipped regimes to their documents,
// against one running keytrail. Each script applies its regime and has tenants of
// its own. Its first part says what is exchanged in which order; the sections
// below hold request and answer:
//
//	GET /v1/authorize/scribe-sight?scope=read
//	Authorization: Bearer sk_live_{secret}
//
//	HTTP/1.1 401 Unauthorized
//	WWW-Authenticate: Bearer realm="scribe-sight"
//	!X-Keytrail-Key-Id
//
//	{"code": "key_revoked", "request_id": "<id>"}
//
// The status line, every header that is named (!Name must be absent) and the
// whole body must be as written, but for the white space of JSON. <id>, <time>,
// <number>, <any> and <base62*28> stand for what is different every time, and
// <days*30> for the time in 30 days; <id:key> keeps it, and {key} is what was
// kept, {key:4} its first four characters. Where a name is kept twice in one
// answer, both must be the same. A section that begins with "$ keytrail" holds a
// command and what it prints.
//
// Run with -update, the answers are rewritten; read the difference.
//
// In the end no secret of any regime is on the record, in the metrics, in the
// log or in a file.
func TestRegimes(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	p := up(t, data, "--trusted-proxy", "127.0.0.0/8")
	var mu sync.Mutex
	var secrets []string
	t.Cleanup(func() { // when all scripts have run
		if len(secrets) == 0 {
			t.Error("the scripts kept no secret")
			return
		}
		_, _, metrics := p.raw(t, "GET", "/metrics", nil, nil)
		record := p.must(t, "audit", "export", "--kind", "events") + p.must(t, "audit", "export", "--kind", "uses") + string(metrics)
		for _, s := range secrets {
			if strings.Contains(record, s) {
				t.Errorf("a secret (%s…) is on the record or in the metrics", s[:4])
			}
		}
		p.stop(t)
		checkNoSecrets(t, data, []*proc{p}, secrets...)
	})
	bin := t.TempDir()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "keytrail")); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(regimeDir)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 scripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			for name, value := range map[string]string{
				asMain: "1", "KEYTRAIL_URL": p.url, "KEYTRAIL_ROOT_KEY": p.root, "REGIMES": dir,
				"PATH": bin + string(os.PathListSeparator) + e.Getenv("PATH"),
			} {
				e.Setenv(name, value)
			}
			talk := &talk{url: p.url, vars: map[string]string{"root": p.root, "regimes": dir}, bin: filepath.Join(bin, "keytrail"), env: e}
			e.Values[talkKey{}] = talk
			e.Defer(func() {
				mu.Lock()
				defer mu.Unlock()
				for name, value := range talk.vars {
					if strings.HasSuffix(name, "secret") || name == "random" {
						secrets = append(secrets, value)
					}
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exchange": exchange},
	})
}

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
		patience := 20 * time.Second
		if *update {
			patience = 5 * time.Second
		}
		deadline := time.Now().Add(patience)
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

// layout brings JSON into lines that do not depend on how it was indented;
// every other character counts, and so does the order of members. Of text that
// is not JSON it takes the lines, with columns two spaces apart.
func layout(text string) ([]string, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	if text[0] != '{' && text[0] != '[' {
		lines := strings.Split(text, "\n")
		for i, line := range lines {
			lines[i] = regexp.MustCompile(` {2,}`).ReplaceAllString(strings.TrimRight(line, " "), "  ")
		}
		return lines, nil
	}
	in := bufio.NewReader(strings.NewReader(text))
	n, err := readNode(in)
	if err != nil {
		return nil, err
	}
	if _, err := skipSpace(in); err != io.EOF {
		return nil, errors.New("something follows the JSON")
	}
	var lines []string
	n.lines(&lines, "", "", "")
	return lines, nil
}

// jsonNode is a JSON value whose scalars may be placeholders.
type jsonNode struct {
	open    byte   // '{', '[', or 0 for a scalar
	scalar  string // as it stands, with its quotes
	members []member
}

type member struct {
	name  string // with its quotes; "" in arrays
	value *jsonNode
}

func (n *jsonNode) flat() string {
	if n.open == 0 {
		return n.scalar
	}
	parts := make([]string, len(n.members))
	for i, m := range n.members {
		if parts[i] = m.value.flat(); n.open == '{' {
			parts[i] = m.name + ": " + parts[i]
		}
	}
	return string(n.open) + strings.Join(parts, ", ") + string(n.open+2)
}

// lines writes the value after the text before. Lists of scalars, and objects
// of no more than two, stand on one line.
func (n *jsonNode) lines(out *[]string, indent, before, after string) {
	simple := n.open != '{' || len(n.members) <= 2
	for _, m := range n.members {
		simple = simple && m.value.open == 0
	}
	if simple || len(n.members) == 0 {
		*out = append(*out, indent+before+n.flat()+after)
		return
	}
	*out = append(*out, indent+before+string(n.open))
	for i, m := range n.members {
		comma, name := ",", ""
		if i == len(n.members)-1 {
			comma = ""
		}
		if n.open == '{' {
			name = m.name + ": "
		}
		m.value.lines(out, indent+"  ", name, comma)
	}
	*out = append(*out, indent+string(n.open+2)+after) // '{'+2 is '}', '['+2 is ']'
}

func skipSpace(in *bufio.Reader) (byte, error) {
	for {
		c, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c, nil
		}
	}
}

func readNode(in *bufio.Reader) (*jsonNode, error) {
	c, err := skipSpace(in)
	if err != nil {
		return nil, err
	}
	if c != '{' && c != '[' {
		in.UnreadByte()
		s, err := readScalar(in)
		return &jsonNode{scalar: s}, err
	}
	n := &jsonNode{open: c}
	for {
		d, err := skipSpace(in)
		switch {
		case err != nil:
			return nil, err
		case d == c+2 && len(n.members) == 0:
			return n, nil
		}
		in.UnreadByte()
		var m member
		if c == '{' {
			if m.name, err = readScalar(in); err != nil {
				return nil, err
			}
			if d, err := skipSpace(in); err != nil || d != ':' {
				return nil, fmt.Errorf("want ':' after %s", m.name)
			}
		}
		if m.value, err = readNode(in); err != nil {
			return nil, err
		}
		n.members = append(n.members, m)
		switch d, err = skipSpace(in); {
		case err != nil:
			return nil, err
		case d == c+2:
			return n, nil
		case d != ',':
			return nil, fmt.Errorf("want ',' or the end after %s", m.value.flat())
		}
	}
}

// readScalar reads a string with its quotes, or what stands up to the next
// delimiter.
func readScalar(in *bufio.Reader) (string, error) {
	var b []byte
	quoted := false
	for {
		c, err := in.ReadByte()
		if err != nil {
			return "", err
		}
		switch {
		case quoted && c == '\\':
			d, err := in.ReadByte()
			if err != nil {
				return "", err
			}
			b = append(b, c, d)
			continue
		case c == '"' && (quoted || len(b) == 0):
			b = append(b, c)
			if quoted {
				return string(b), nil
			}
			quoted = true
			continue
		case !quoted && strings.IndexByte(" \n\t\r,:]}", c) >= 0 && !bytes.ContainsRune(b, '<'),
			!quoted && strings.IndexByte(" \n\t\r,]}", c) >= 0:
			in.UnreadByte()
			if len(b) == 0 {
				return "", fmt.Errorf("want a value before %q", c)
			}
			return string(b), nil
		}
		b = append(b, c)
	}
}

// update writes the answer into the script in place of the one that stands
// there. Lines and members that still hold keep their placeholders; what looks as
// if it were different every time becomes one.
func (t *talk) update(ts *testscript.TestScript, name string, e *conversation, got *reply) error {
	path := filepath.Join(scripts, ts.Name()+".txtar")
	if t.archive == nil {
		a, err := txtar.ParseFile(path)
		if err != nil {
			return err
		}
		t.archive = a
	}
	var b strings.Builder
	i := slices.IndexFunc(t.archive.Files, func(f txtar.File) bool { return f.Name == name })
	if e.command != nil {
		line, _, _ := strings.Cut(string(t.archive.Files[i].Data), "\n")
		b.WriteString(line + "\n")
		if got.status != "exit 0" {
			b.WriteString(got.status + "\n")
		}
	} else {
		request, _, _ := strings.Cut(string(t.archive.Files[i].Data), "HTTP/")
		b.WriteString(request + got.status + "\n")
		for _, h := range e.want {
			value := strings.Join(got.header.Values(h[0]), ", ")
			switch _, absent := strings.CutPrefix(h[0], "!"); {
			case absent:
				b.WriteString(h[0] + "\n")
			case t.match(h[1], value, map[string]string{}):
				b.WriteString(h[0] + ": " + h[1] + "\n")
			case value != "":
				b.WriteString(h[0] + ": " + t.generalize(value) + "\n")
			}
		}
		b.WriteString("\n")
	}
	want, err := layout(e.answer)
	if err != nil {
		return err
	}
	have, err := layout(got.body)
	if err != nil {
		return err
	}
	kept := regexp.MustCompile(`"\w+": "[^"]*<[^"]*"`).FindAllString(e.answer, -1)
	for _, line := range have {
		out := t.generalize(line)
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		for _, m := range kept {
			if bare := strings.TrimSuffix(line, ","); t.match(indent+m, bare, map[string]string{}) {
				out = indent + m + line[len(bare):]
			}
		}
		for k, w := range want {
			if t.match(w, line, map[string]string{}) {
				out, want = w, want[k+1:]
				break
			}
		}
		b.WriteString(out + "\n")
	}
	b.WriteString("\n")
	t.archive.Files[i].Data = []byte(b.String())
	if err := os.WriteFile(path, txtar.Format(t.archive), 0o644); err != nil {
		return err
	}
	again, err := readExchange(b.String())
	if err != nil {
		return err
	}
	return t.compare(again, got)
}

var changing = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(kinds["time"]), "<time>"},
	{regexp.MustCompile(kinds["id"]), "<id>"},
	{regexp.MustCompile(kinds["role"]), "<role>"},
	{regexp.MustCompile(`^\d+  <time>`), "<number>  <time>"}, // the trail
	{regexp.MustCompile(`("position": ")[^"]+`), "${1}<any>"},
	{regexp.MustCompile(`\b[a-z0-9-]+/\d{10,}/\d+\b`), "<any>"},
}

var hint = regexp.MustCompile(`(?:"hint": "|^hint  )[^"]*([^"]{4})(?:"|$)`)

// generalize puts placeholders into a line of an answer.
func (t *talk) generalize(line string) string {
	for name, value := range t.vars {
		if len(value) > 8 {
			line = strings.ReplaceAll(line, value, "{"+name+"}")
		}
	}
	if m := hint.FindStringSubmatchIndex(line); m != nil {
		with := "<any>" // of the key that this answer makes
		for name, value := range t.vars {
			if strings.HasPrefix(value, line[m[2]:m[3]]) {
				with = "{" + name + ":4}"
			}
		}
		line = line[:m[2]] + with + line[m[3]:]
	}
	for _, c := range changing {
		line = c.re.ReplaceAllString(line, c.with)
	}
	return line
}

// TestExchangeSeesDifferences: what differs from a script is told.
func TestExchangeSeesDifferences(t *testing.T) {
	const script = `GET /v1/keys/{key}
Authorization: Bearer {root}

HTTP/1.1 200 OK
Content-Type: application/json
Retry-After: <number>
X-Request-Id: <any:request>
!WWW-Authenticate

{"data": {"until": "<days*30>", "request": "<any:request>", "form": "{unknown}", "id": "{key}", "rev": <number>, "key": "k_<hex*4:secret>", "scopes": ["read", "{secret:2}"],
  "text": "a \"quoted\" {brace}, [b]", "empty": {}, "none": []}}
`
	until := func(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.RFC3339) }
	body := `{"data":{"until":"` + until(30) + `","request":"req_1","form":"{unknown}","id":"key_1","rev":7,"key":"k_12ab","scopes":["read","zz"],"text":"a \"quoted\" {brace}, [b]","empty":{},"none":[]}}`
	good := func() *reply {
		return &reply{"HTTP/1.1 200 OK", http.Header{"Content-Type": {"application/json"}, "Retry-After": {"3"}, "X-Request-Id": {"req_1"}}, body}
	}
	try := func(change func(*reply)) error {
		e, err := readExchange(script)
		if err != nil {
			t.Fatal(err)
		}
		r := good()
		change(r)
		talk := &talk{vars: map[string]string{"key": "key_1", "secret": "zzzz", "brace": "{brace}"}}
		err = talk.compare(e, r)
		if err == nil && talk.vars["secret"] != "12ab" {
			t.Errorf("captured %v", talk.vars)
		}
		return err
	}
	if err := try(func(*reply) {}); err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) func(*reply) {
		return func(r *reply) {
			if !strings.Contains(r.body, old) {
				t.Fatalf("the body has no %s", old)
			}
			r.body = strings.Replace(r.body, old, new, 1)
		}
	}
	for name, change := range map[string]func(*reply){
		"status":           func(r *reply) { r.status = "HTTP/1.1 201 Created" },
		"header":           func(r *reply) { r.header.Set("Content-Type", "text/plain") },
		"header form":      func(r *reply) { r.header.Set("Retry-After", "3.5") },
		"header missing":   func(r *reply) { r.header.Del("Retry-After") },
		"header twice":     func(r *reply) { r.header.Add("Retry-After", "4") },
		"header not there": func(r *reply) { r.header.Set("WWW-Authenticate", "") },
		"value":            replace("key_1", "key_2"),
		"kept otherwise":   replace("req_1", "req_2"),
		"days":             replace(until(30), until(29)),
		"no time":          replace(until(30), "in 30 days"),
		"not kept":         replace("{unknown}", "known"),
		"number as text":   replace("7", `"7"`),
		"too long":         replace("12ab", "12abc"),
		"alphabet":         replace("12ab", "12ag"),
		"order of members": replace(`"id":"key_1","rev":7`, `"rev":7,"id":"key_1"`),
		"order of a list":  replace(`"read","zz"`, `"zz","read"`),
		"one more member":  replace(`"rev":7`, `"rev":7,"more":1`),
		"one less member":  replace(`"rev":7,`, ""),
		"escape":           replace(`\"`, `\u0022`),
		"space in a text":  replace("a ", "a"),
		"null for none":    replace("[]}", "null}"),
		"no body":          func(r *reply) { r.body = "" },
		"two values":       func(r *reply) { r.body += r.body },
	} {
		if err := try(change); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

// TestRegimeTables: deploy/regimes/README.md counts its statements rightly, and
// what it names as showing one exists and runs.
func TestRegimeTables(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(regimeDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(b), "\n## Lathe Studio\n")
	type totals struct{ statements, shown int }
	stated := map[string]totals{} // by document
	files := map[string]string{}  // document -> regime
	for _, m := range regexp.MustCompile(`(?m)^\| (.+) \| \[([a-z-]+)\.yaml\]\(.*\) \| (\d+) \| (\d+) \| (\d+) \|$`).FindAllStringSubmatch(head, -1) {
		n, _ := strconv.Atoi(m[3])
		shown, _ := strconv.Atoi(m[4])
		if others, _ := strconv.Atoi(m[5]); n != shown+others {
			t.Errorf("%s: %d statements are not %d + %d", m[1], n, shown, others)
		}
		stated[m[1]], files[m[1]] = totals{n, shown}, m[2]
	}
	if yamls, err := filepath.Glob(filepath.Join(regimeDir, "*.yaml")); err != nil || len(yamls) != len(files) {
		t.Errorf("%d regimes, %d documents: %v", len(yamls), len(files), err)
	}
	checkCredentialTable(t, head)
	row := regexp.MustCompile(`(?m)^\| (\d+) \| (.+) \| (.+) \| (.+) \|$`)
	quoted := regexp.MustCompile("`([^`]+)`")
	for section := range strings.SplitSeq("Lathe Studio\n"+rest, "\n## ") {
		document, text, _ := strings.Cut(section, "\n")
		want, ok := stated[document]
		if !ok {
			t.Errorf("%s has no totals", document)
			continue
		}
		runs := exchanged(t, files[document])
		var got totals
		for i, m := range row.FindAllStringSubmatch(text, -1) {
			if m[1] != strconv.Itoa(i+1) {
				t.Errorf("%s: statement %s stands in place %d", document, m[1], i+1)
			}
			got.statements++
			switch m[3] {
			case "shown":
				got.shown++
			case "gateway", "dashboard", "product", "customer":
				continue
			default:
				t.Errorf("%s %s: whose is %q", document, m[1], m[3])
			}
			by, _, _ := strings.Cut(m[4], ": ")
			names := quoted.FindAllStringSubmatch(by, -1)
			if len(names) == 0 {
				t.Errorf("%s %s: nothing shows it", document, m[1])
			}
			for _, n := range names {
				if !runs[n[1]] && !goTest(t, n[1]) {
					t.Errorf("%s %s: there is no %s", document, m[1], n[1])
				}
			}
		}
		if got != want {
			t.Errorf("%s: counted %+v, stated %+v", document, got, want)
		}
	}
}

// checkCredentialTable holds the table of what counts as missing, malformed and
// unknown to the sections that it names.
func checkCredentialTable(t *testing.T, text string) {
	t.Helper()
	const script = scripts + "/workspace.txtar"
	a, err := txtar.ParseFile(script)
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| .+ \\| (\\d+) \\| ([a-z_]+) \\| `([a-z-]+)` \\|$").FindAllStringSubmatch(text, -1)
	if len(rows) == 0 {
		t.Error("no table of credentials")
	}
	for _, m := range rows {
		i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == m[3] })
		if i < 0 {
			t.Errorf("%s has no %s", script, m[3])
			continue
		}
		answer := string(a.Files[i].Data)
		said := m[2] == "ok" && !strings.Contains(answer, `"code": `) || strings.Contains(answer, `"code": "`+m[2]+`"`)
		if !said || !strings.Contains(answer, "HTTP/1.1 "+m[1]+" ") {
			t.Errorf("%s does not show %s %s", m[3], m[1], m[2])
		}
	}
}

// exchanged returns the sections that the scripts of a regime exchange. Each
// section of theirs must be.
func exchanged(t *testing.T, regime string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	paths, err := filepath.Glob(filepath.Join(scripts, regime+"*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Errorf("%s has no script: %v", regime, err)
	}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(a.Comment)) {
			if words := strings.Fields(line); len(words) > 1 && words[0] == "exchange" {
				for _, name := range words[1:] {
					out[name] = true
				}
			}
		}
		for _, f := range a.Files {
			if !out[f.Name] {
				t.Errorf("%s: nothing exchanges %s", path, f.Name)
			}
		}
	}
	return out
}

// goTest reports whether the repository has a Go test of this name.
func goTest(t *testing.T, name string) bool {
	t.Helper()
	if !strings.HasPrefix(name, "Test") {
		return false
	}
	found := false
	err := filepath.WalkDir("../..", func(path string, e os.DirEntry, err error) error {
		if err != nil || found || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		found = bytes.Contains(b, []byte("\nfunc "+name+"("))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
