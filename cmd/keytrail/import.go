package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/files"
)

// How long one request of an import may take, how often one that got no answer is
// sent again, and how many refused lines are told on standard error.
const (
	importBudget = time.Minute
	importTries  = 5
	importTold   = 20
)

// importCall is one `keytrail key import`.
type importCall struct {
	app                                            *app
	keyspace, file, format, from, reason, rejected string
	dryRun                                         bool
	batch                                          int

	client  *client.Client
	pause   func(context.Context, time.Duration) // before a request is sent again
	rejects *files.Output                        // nil: standard error
	began   time.Time
	told    time.Time // when the progress was printed last
	tally   importTally
}

// importTally is how far an import is.
type importTally struct {
	Lines      int    `json:"lines"`
	Imported   int    `json:"imported"`
	Already    int    `json:"already"`
	Refused    int    `json:"refused"`
	Acceptable int    `json:"acceptable,omitzero"` // of a dry run
	Position   string `json:"position,omitzero"`
	last       int    // line that is dealt with
}

// importBatch is the lines of one request. err is why there are no more.
type importBatch struct {
	lines []importLine
	size  int // bytes of their bodies
	err   error
}

func (a *app) keyImport() *cobra.Command {
	i := &importCall{app: a, pause: pauseFor}
	c := &cobra.Command{Use: "import", Short: "Import keys of another system, without reissuing them", Args: none,
		Long: `Import keys of another system: their holders go on using them. Each line is one
key, as a JSON object or as CSV with a header line, with its tenant, its name, and
either "digest", the SHA-256 of the secret, or "key", the secret itself. A secret
is read from standard input only and hashed at once; it is not sent, printed or
kept. Type, environment, scopes, roles, resources, allowlist, expires_at,
expires_in, limit and metadata are as in 'key create'; in CSV lists are separated
by spaces, "-" is the empty list, a resource is kind/id, expires_at may be never,
an empty cell takes the default (but allowlist, resources and status must be filled in),
and there are columns limit.plan, limit.per_minute, limit.burst and metadata.NAME.

"status" says how the key stands where it comes from: active (the default),
disabled, revoked (with revoke_code, and revoked_at if it is known) or expired
(with its expires_at). A key that is dead there does not come alive here.

A line that is refused does not stop the others; the exit code is then 1. To go on
after an interruption, or when refused lines are mended, run the same command
again: what is there already is left as it is.`,
		Example: `  keytrail key import --keyspace scribe-sight -f keys.csv --from 'the old gateway' --rejects rejects.jsonl
  export-keys | keytrail key import --keyspace scribe-sight -f - --format jsonl
  echo '{"digest":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","tenant":"acme","name":"ci"}' |
    keytrail key import --keyspace scribe-sight --dry-run`,
		RunE: func(c *cobra.Command, _ []string) error { return i.run(c.Context()) }}
	f := c.Flags()
	f.StringVar(&i.keyspace, "keyspace", "", "the keyspace")
	f.StringVarP(&i.file, "file", "f", "-", "the lines; - reads standard input, the only place for secrets in plain text")
	f.StringVar(&i.format, "format", "", "jsonl or csv (default: by the file's extension; jsonl from standard input)")
	f.StringVar(&i.from, "from", "", "where the keys come from, for the record")
	f.StringVar(&i.reason, "reason", "", "why, for the record")
	f.StringVar(&i.rejected, "rejects", "", "write rejected lines to this file: line number, name and errors, one JSON object a line; replaced when a run is through, FILE.part until then")
	f.BoolVar(&i.dryRun, "dry-run", false, "say what would become of each line and import nothing; lines are held against those of their own batch and what is there")
	f.IntVar(&i.batch, "batch", commands.MaxImport, fmt.Sprintf("keys a request, at most %d", commands.MaxImport))
	c.MarkFlagRequired("keyspace")
	return c
}

func pauseFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (i *importCall) run(ctx context.Context) (err error) {
	if i.batch < 1 || i.batch > commands.MaxImport {
		return usageError{fmt.Errorf("--batch %d: want 1 to %d", i.batch, commands.MaxImport)}
	}
	if i.format == "" {
		switch ext := strings.ToLower(filepath.Ext(i.file)); {
		case i.file == "-", ext == ".jsonl", ext == ".ndjson", ext == ".json":
			i.format = "jsonl"
		case ext == ".csv":
			i.format = "csv"
		}
	}
	if i.format != "jsonl" && i.format != "csv" {
		return usageError{fmt.Errorf("want --format jsonl or --format csv")}
	}
	in := i.app.in
	if i.file != "-" {
		f, err := os.Open(i.file)
		if err != nil {
			return fmt.Errorf("read the keys: %w", err)
		}
		defer f.Close()
		in = f
	}
	if i.client, err = i.app.client(""); err != nil {
		return err
	}
	def, err := i.definition(ctx)
	if err != nil {
		return err
	}
	through := false // all lines were read and answered
	if i.rejected != "" {
		if i.rejects, err = files.Create(i.rejected, true); err != nil {
			return fmt.Errorf("write the rejected lines: %w", err)
		}
		defer func() {
			end := i.rejects.Commit
			if !through {
				end = i.rejects.Close
				fmt.Fprintf(i.app.err, "rejected lines so far are in %s\n", i.rejects.Part())
			}
			if eerr := end(); eerr != nil {
				err = errors.Join(err, fmt.Errorf("write the rejected lines: %w", eerr))
			}
		}()
	}
	i.began, i.told = time.Now(), time.Now()
	m := lineMaker{plaintext: i.file == "-", hint: func(s events.Secret) string { return def.Hint(s.Reveal()) }}
	err = i.pump(ctx, in, m)
	through = err == nil
	i.progress()
	fmt.Fprintln(i.app.err)
	if serr := i.summary(); err == nil {
		err = serr
	}
	return err
}

// definition returns the definition that hints are taken by, an empty one when the
// operator key may import but not read it.
func (i *importCall) definition(ctx context.Context) (*keyspace.Definition, error) {
	var ans struct {
		Data keyspaceView `json:"data"`
	}
	err := i.client.Do(ctx, http.MethodGet, "/v1/keyspaces/"+url.PathEscape(i.keyspace), nil, nil, nil, &ans)
	if p, ok := errors.AsType[*client.Problem](err); ok && p.Status == http.StatusForbidden {
		return new(keyspace.Definition), nil
	}
	return &ans.Data.Definition, err
}

// pump reads ahead while a batch is under way, and ends after the batch under way
// when ctx ends.
func (i *importCall) pump(ctx context.Context, in io.Reader, m lineMaker) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	batches := make(chan importBatch)
	go func() { // ends with reading, or, when a read blocks, with the process
		defer close(batches)
		i.read(reading, in, m, batches)
	}()
	for {
		select {
		case <-ctx.Done():
			return i.interrupted()
		case b, ok := <-batches:
			if !ok {
				return i.interrupted()
			}
			if err := i.do(ctx, &b); err != nil {
				return err
			}
			if b.err == io.EOF {
				return nil
			}
			if b.err != nil {
				return b.err
			}
		}
	}
}

func (i *importCall) interrupted() error {
	return fmt.Errorf("interrupted after line %d: run the same command again to go on", i.tally.last)
}

// read gathers lines into batches. The last one has an error, io.EOF when all is
// read. Nothing is sent once ctx has ended.
func (i *importCall) read(ctx context.Context, in io.Reader, m lineMaker, batches chan<- importBatch) {
	var b importBatch
	var lines importLines
	lines, b.err = newImportLines(i.format, in, m)
	send := func() bool {
		select {
		case batches <- b:
			b = importBatch{}
			return true
		case <-ctx.Done():
			return false
		}
	}
	for b.err == nil {
		var l importLine
		if l, b.err = lines.next(); b.err != nil {
			break
		}
		if b.size+len(l.body)+1 > maxImportBody && !send() {
			return
		}
		b.lines = append(b.lines, l)
		b.size += len(l.body) + 1
		if len(b.lines) == i.batch && !send() {
			return
		}
	}
	send()
}

// do sends the good lines of a batch and tells what became of each.
func (i *importCall) do(ctx context.Context, b *importBatch) error {
	var keys []jsontext.Value
	for _, l := range b.lines {
		if l.body != nil {
			keys = append(keys, l.body)
		}
	}
	var ans struct {
		Data     []commands.ImportResult `json:"data"`
		Position string                  `json:"position"`
	}
	if len(keys) > 0 {
		body := map[string]any{"keys": keys}
		if i.from != "" {
			body["imported_from"] = i.from
		}
		if i.reason != "" {
			body["reason"] = i.reason
		}
		if i.dryRun {
			body["dry_run"] = true
		}
		if err := i.send(ctx, body, &ans); err != nil {
			return err
		}
		if len(ans.Data) != len(keys) {
			return fmt.Errorf("the answer is not what this command expects: %d results for %d keys", len(ans.Data), len(keys))
		}
		i.tally.Position = ans.Position
	}
	for _, l := range b.lines {
		r := commands.ImportResult{Status: commands.ImportRefused, Errors: l.errors}
		if l.body != nil {
			r, ans.Data = ans.Data[0], ans.Data[1:]
		}
		i.tally.Lines++
		i.tally.last = l.n
		switch r.Status {
		case commands.ImportDone:
			i.tally.Imported++
		case commands.ImportAlready:
			i.tally.Already++
		case commands.ImportAcceptable:
			i.tally.Acceptable++
		default:
			i.tally.Refused++
			if err := i.reject(&l, r.Errors); err != nil {
				return err
			}
		}
	}
	if time.Since(i.told) > 500*time.Millisecond {
		i.told = time.Now()
		i.progress()
	}
	return nil
}

// send does one request, and again while nobody answers: an import may be sent any
// number of times. What is under way is not cut off when ctx ends.
func (i *importCall) send(ctx context.Context, body, ans any) error {
	path := "/v1/keyspaces/" + url.PathEscape(i.keyspace) + "/keys/import"
	for try, wait := 1, time.Second; ; try, wait = try+1, 2*wait {
		sending, cancel := context.WithTimeout(context.WithoutCancel(ctx), importBudget)
		err := i.client.Do(sending, http.MethodPost, path, nil, nil, body, ans)
		cancel()
		p, answered := errors.AsType[*client.Problem](err)
		switch {
		case err == nil:
			return nil
		case answered && p.Status != http.StatusServiceUnavailable, try == importTries, ctx.Err() != nil:
			fmt.Fprintf(i.app.err, "\nstopped after line %d; run the same command again to go on\n", i.tally.last)
			return err
		}
		i.pause(ctx, wait)
	}
}

// reject tells one refused line, never with its secret.
func (i *importCall) reject(l *importLine, errs input.FieldErrors) error {
	if i.rejects == nil {
		switch i.tally.Refused {
		case importTold + 1:
			fmt.Fprintln(i.app.err, "\rmore lines are refused; --rejects FILE keeps them all")
		default:
			if i.tally.Refused <= importTold {
				fmt.Fprintf(i.app.err, "\rline %d %s: %s\n", l.n, input.Echo(l.name), line(errs.Error()))
			}
		}
		return nil
	}
	b, err := json.Marshal(struct {
		Line   int               `json:"line"`
		Tenant string            `json:"tenant,omitzero"`
		Name   string            `json:"name,omitzero"`
		Errors input.FieldErrors `json:"errors"`
	}{l.n, l.tenant, l.name, errs}, jsontext.AllowInvalidUTF8(true))
	if err == nil {
		_, err = i.rejects.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the refused lines: %w", err)
	}
	return nil
}

// counts says how far it is.
func (t *importTally) counts() string {
	s := fmt.Sprintf("%d lines: %d imported, %d already there, %d refused", t.Lines, t.Imported, t.Already, t.Refused)
	if t.Acceptable > 0 {
		s += fmt.Sprintf(", %d acceptable", t.Acceptable)
	}
	return s
}

func (i *importCall) progress() {
	rate := float64(i.tally.Lines) / max(time.Since(i.began).Seconds(), 0.001)
	fmt.Fprintf(i.app.err, "\r%s, %.0f lines/s   ", i.tally.counts(), rate)
}

// summary prints what the import came to. Its error is that lines were refused.
func (i *importCall) summary() error {
	if i.app.json {
		if err := i.app.printJSON(i.tally); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(i.app.out, i.tally.counts())
	}
	if i.tally.Refused > 0 {
		return fmt.Errorf("%d of %d lines were refused: mend them and run the same command again", i.tally.Refused, i.tally.Lines)
	}
	return nil
}
