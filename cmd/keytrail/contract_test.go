package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keytrail/keytrail/schemas"
)

// contract holds every answer that the tests of this package get from a running
// keytrail to the OpenAPI document: the status is one that the operation
// documents, and the body is of the media type and schema that it names. TestMain
// puts it under http.DefaultClient, so the command line goes through it too.
type contract struct {
	doc      *document
	mu       sync.Mutex
	hosts    map[string]int // how many processes that spawn started and that run, by host:port
	breaches []string
	seen     int
}

var answers = contract{hosts: map[string]int{}}

// watch holds what comes from base from now on to the document.
func (c *contract) watch(base string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[strings.TrimPrefix(base, "http://")]++
}

// leave ends a watch: the process has ended, and its port may become another's.
func (c *contract) leave(base string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[strings.TrimPrefix(base, "http://")]--
}

// finish reports every breach, and whether there was none.
func (c *contract) finish() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.breaches {
		fmt.Fprintln(os.Stderr, "--- FAIL: an answer is not what openapi.v1.json says:", b)
	}
	return len(c.breaches) == 0
}

func (c *contract) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	c.mu.Lock()
	watched := c.hosts[r.URL.Host] > 0
	c.mu.Unlock()
	if !watched || r.Method == http.MethodHead {
		return resp, nil
	}
	var body []byte
	if typ, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); strings.HasSuffix(typ, "json") {
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{err}))
		if err != nil {
			return resp, nil // the test sees the same
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if err := c.doc.check(r, resp, body); err != nil {
		c.breaches = append(c.breaches, fmt.Sprintf("%s %s: %d: %v", r.Method, r.URL.Path, resp.StatusCode, err))
	}
	return resp, nil
}

var transport = http.DefaultTransport

// failing ends a body as it ended on the wire.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}

// document is the OpenAPI document, its schemas compiled when they are needed.
type document struct {
	root       map[string]any
	compiler   *jsonschema.Compiler
	compiled   map[string]*jsonschema.Schema // by the schema's text
	operations []*operation
}

type operation struct {
	id, method, path string
	literals         int // segments of path that are no parameters
	match            *regexp.Regexp
	spec             map[string]any
	parameters       []map[string]any // of the path and of the operation
}

const documentURL = "urn:openapi"

func readDocument() (*document, error) {
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemas.OpenAPI()))
	if err != nil {
		return nil, err
	}
	d := &document{root: root.(map[string]any), compiler: jsonschema.NewCompiler(), compiled: map[string]*jsonschema.Schema{}}
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource(documentURL, root); err != nil {
		return nil, err
	}
	for path, item := range d.root["paths"].(map[string]any) {
		item := item.(map[string]any)
		for method, spec := range item {
			spec, ok := spec.(map[string]any)
			if !ok || spec["operationId"] == nil {
				continue
			}
			o := &operation{id: spec["operationId"].(string), method: strings.ToUpper(method), path: path, spec: spec}
			if item[schemas.AnyMethod] != nil {
				o.method = ""
			}
			pattern := regexp.QuoteMeta(path)
			for _, segment := range strings.Split(path, "/") {
				if strings.HasPrefix(segment, "{") {
					pattern = strings.Replace(pattern, regexp.QuoteMeta(segment), "[^/]+", 1)
				} else {
					o.literals++
				}
			}
			o.match = regexp.MustCompile("^" + pattern + "$")
			for _, of := range []map[string]any{item, spec} {
				list, _ := of["parameters"].([]any)
				for _, p := range list {
					o.parameters = append(o.parameters, d.resolve(p))
				}
			}
			d.operations = append(d.operations, o)
		}
	}
	return d, nil
}

// resolve follows the reference that v may be.
func (d *document) resolve(v any) map[string]any {
	m := v.(map[string]any)
	ref, ok := m["$ref"].(string)
	if !ok {
		return m
	}
	var at any = d.root
	for _, name := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		at = at.(map[string]any)[name]
	}
	return d.resolve(at)
}

// operation returns the operation that a request is, nil when the document has
// none; known says that the path has others.
func (d *document) operation(method, path string) (found *operation, known bool) {
	for _, o := range d.operations {
		if !o.match.MatchString(path) {
			continue
		}
		known = true
		if (o.method == "" || o.method == method) && (found == nil || found.literals < o.literals) {
			found = o
		}
	}
	return found, known
}

func (d *document) check(r *http.Request, resp *http.Response, body []byte) error {
	o, known := d.operation(r.Method, r.URL.Path)
	typ, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var spec any
	switch {
	case o != nil:
		responses := o.spec["responses"].(map[string]any)
		if spec = responses[fmt.Sprint(resp.StatusCode)]; spec == nil {
			if resp.StatusCode < 400 {
				return fmt.Errorf("%s does not document this status", o.id)
			}
			spec = responses["default"]
		}
	case known && resp.StatusCode != http.StatusMethodNotAllowed, !known && resp.StatusCode != http.StatusNotFound:
		return fmt.Errorf("the document has no such operation")
	default:
		spec = map[string]any{"$ref": "#/components/responses/Problem"}
	}
	own := resp.Header.Get("Preference-Applied") != "" || o != nil && o.id == "authorize" && resp.StatusCode >= 400
	content, _ := d.resolve(spec)["content"].(map[string]any)
	if own && content[typ] == nil { // the keyspace's definition has the form of it
		if !json.Valid(body) || body[0] != '{' {
			return fmt.Errorf("an envelope of the keyspace that is no JSON object: %s", body)
		}
		return nil
	}
	if content == nil {
		if resp.ContentLength != 0 {
			return fmt.Errorf("the document has no body for this")
		}
		return nil
	}
	media, ok := content[typ].(map[string]any)
	if !ok {
		return fmt.Errorf("the document does not have %s for this", typ)
	}
	if body == nil {
		return nil // a stream or a text
	}
	return d.validate(media["schema"], body)
}

// validate holds JSON to a schema that stands in the document.
func (d *document) validate(schema any, body []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return d.validateValue(schema, v)
}

func (d *document) validateValue(schema, v any) error {
	b, err := json.Marshal(schema)
	if err != nil {
		return err
	}
	// A schema of its own, whose references lead into the document.
	text := strings.ReplaceAll(string(b), `"#/`, `"`+documentURL+`#/`)
	s := d.compiled[text]
	if s == nil {
		parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			return err
		}
		at := fmt.Sprint("urn:schema:", len(d.compiled))
		if err := d.compiler.AddResource(at, parsed); err != nil {
			return err
		}
		if s, err = d.compiler.Compile(at); err != nil {
			return err
		}
		d.compiled[text] = s
	}
	if err := s.Validate(v); err != nil {
		shown, _ := json.Marshal(v)
		return fmt.Errorf("%w\nin %.2000s", err, shown)
	}
	return nil
}

// The port of a process that has ended may become that of a server that is none of ours.
func TestOnlyRunningProcessesAreWatched(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	c := contract{doc: answers.doc, hosts: map[string]int{}}
	breaches := func(want int) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", other.URL+"/v1/keys/key_00000000000000000000000001", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if len(c.breaches) != want {
			t.Errorf("%d breaches, want %d", len(c.breaches), want)
		}
	}
	breaches(0)
	c.watch(other.URL)
	breaches(1)
	c.watch(other.URL) // the next process at this address is there already
	c.leave(other.URL)
	breaches(2)
	c.leave(other.URL)
	breaches(2)
}
