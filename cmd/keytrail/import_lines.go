package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// maxImportLine bounds one line of an import, and maxImportBody the keys of one
// request, in bytes.
const (
	maxImportLine = 512 << 10
	maxImportBody = api.MaxBody - 16<<10 // room for what stands beside the keys
)

// importLine is one line of an import, without its plaintext.
type importLine struct {
	n            int // in the input, from 1
	tenant, name string
	body         jsontext.Value // of the key, as the endpoint takes it
	errors       input.FieldErrors
}

// importLines reads an import line by line. A faulty line carries its fault and the
// import goes on; an error ends the import, io.EOF well. No error repeats what it read: any
// part of a line may be a secret in the wrong place.
type importLines interface{ next() (importLine, error) }

// importRow is what a line says.
type importRow struct {
	Key *string `json:"key,omitzero"` // the plaintext, until hashed
	ImportKey
}

// ImportKey has the members of a key in a request and not its methods: as a method
// of a line, UnmarshalJSONFrom would pass over the member key.
type ImportKey commands.ImportKey

const (
	importMembers = "digest, key, hint, tenant, name, type, environment, scopes, roles, resources, allowlist, expires_at, expires_in, limit, metadata, status, revoked_at, revoke_code, reason"
	importColumns = "digest, key, hint, tenant, name, type, environment, scopes, roles, resources, allowlist, expires_at, expires_in, limit.plan, limit.per_minute, limit.burst, metadata.NAME, status, revoked_at, revoke_code, reason"
)

// errPlaintextFile refuses plaintext that lies on a disk.
type errPlaintextFile struct{ line int }

func (e errPlaintextFile) Error() string {
	return fmt.Sprintf("line %d holds a key in plain text: it is read from standard input only, because a file of plain keys "+
		"outlives the move in backups and on other disks; pipe it from where the keys are, as 'export-keys | keytrail key import -f -', "+
		"or give digests", e.line)
}

// lineMaker makes lines of rows.
type lineMaker struct {
	plaintext bool // the input may hold keys in plain text
	hint      func(events.Secret) string
}

// line hashes the plaintext, if there is one, and forgets it.
func (m *lineMaker) line(n int, row *importRow) (importLine, error) {
	l := importLine{n: n}
	var secret events.Secret
	switch {
	case row.Key != nil && !m.plaintext:
		return l, errPlaintextFile{n}
	case row.Key != nil && row.Digest != "":
		secret = events.NewSecret(*row.Key)
		l.errors.Add("key", "conflict", "want either key or digest, not both")
	case row.Key == nil && row.Digest == "":
		l.errors.Add("digest", "required", "want either key or digest")
	case row.Key == nil:
		// What is no digest may be a secret in its place, and is not sent.
		if fault := commands.DigestFault(row.Digest); fault != "" {
			l.errors.Add("digest", "invalid", fault)
			return l, nil
		}
	default:
		secret = events.NewSecret(*row.Key)
		switch {
		case !events.WellFormed(secret.Reveal()):
			l.errors.Add("key", "invalid", "want 16 to 256 visible ASCII characters: another secret cannot be told from other text, and so not kept out of messages; if this key must live on, give its digest")
		case row.Hint != "":
			l.errors.Add("hint", "conflict", "want no hint beside key: it is taken from the key")
		default:
			d := secret.Digest()
			row.Digest, row.Hint = hex.EncodeToString(d[:]), m.hint(secret)
		}
	}
	row.Key = nil
	body, err := json.Marshal(&row.ImportKey, json.Deterministic(true))
	if err != nil { // what JSON cannot hold: the fields are strings and numbers
		l.errors.Add("", "invalid", "want valid UTF-8")
		return l, nil
	}
	if holds(body, secret) { // then nothing of the line is repeated
		if len(l.errors) == 0 {
			l.errors.Add("", "secret", "another field of the line holds the key itself")
		}
		return l, nil
	}
	l.tenant, l.name = clip(string(row.Tenant), 64), clip(row.Name, 100)
	if len(body) > maxImportBody {
		l.errors.Add("", "invalid", "the line is too long")
	}
	if len(l.errors) == 0 {
		l.body = body
	}
	return l, nil
}

// holds reports whether the JSON text holds the secret, as it is or as JSON
// writes it. A hint is shorter than its secret.
func holds(body []byte, s events.Secret) bool {
	if s.IsZero() {
		return false
	}
	quoted, err := jsontext.AppendQuote(nil, s.Reveal())
	return bytes.Contains(body, []byte(s.Reveal())) || err == nil && bytes.Contains(body, quoted[1:len(quoted)-1])
}

// clip bounds what a message repeats.
func clip(s string, max int) string {
	if utf8.RuneCountInString(s) <= max {
		return s
	}
	return string([]rune(s)[:max]) + "…"
}

// bad makes a line that could not be read.
func bad(n int, field, message string) importLine {
	return importLine{n: n, errors: input.FieldErrors{{Field: field, Code: "invalid", Message: message}}}
}

// newImportLines reads lines of the format, past a byte order mark.
func newImportLines(format string, in io.Reader, m lineMaker) (importLines, error) {
	r := bufio.NewReaderSize(in, maxImportLine)
	if b, err := r.Peek(3); err == nil && string(b) == "\ufeff" {
		if _, err := r.Discard(len(b)); err != nil {
			return nil, err
		}
	}
	if format == "csv" {
		return newCSVLines(r, m)
	}
	return &jsonLines{lineMaker: m, r: r}, nil
}

// jsonLines reads one JSON object a line. Empty lines are skipped.
type jsonLines struct {
	lineMaker
	r *bufio.Reader
	n int
}

func (j *jsonLines) next() (importLine, error) {
	for {
		b, err := j.r.ReadSlice('\n') // a part of the buffer, which is cleared below
		j.n++
		if errors.Is(err, bufio.ErrBufferFull) {
			return bad(j.n, "", fmt.Sprintf("want a line of at most %d bytes", maxImportLine)), j.skip()
		}
		if err != nil && err != io.EOF {
			return importLine{}, fmt.Errorf("line %d: %w", j.n, err)
		}
		if len(bytes.TrimSpace(b)) == 0 {
			if err == io.EOF {
				return importLine{}, io.EOF
			}
			continue
		}
		// As strictly as a body of a request: a null or an empty text would take the
		// member's default, and that of an allowlist is any address.
		var row importRow
		fault := api.DecodeValue(b, &row)
		clear(b)
		if fault != nil {
			return unread(j.n, fault), nil
		}
		return j.line(j.n, &row)
	}
}

// skip drops the rest of a line.
func (j *jsonLines) skip() error {
	for {
		_, err := j.r.ReadSlice('\n')
		switch {
		case err == nil, err == io.EOF: // the next read says the latter again
			return nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("line %d: %w", j.n, err)
		}
	}
}

// unread makes a line that says why its JSON cannot be read.
func unread(n int, p *api.Problem) importLine {
	if len(p.Errors) == 0 {
		return bad(n, "", p.Detail)
	}
	for i, f := range p.Errors {
		if f.Code == "unknown_field" && !strings.ContainsAny(f.Field, ".[") {
			p.Errors[i].Message = "want only " + importMembers
		}
	}
	return importLine{n: n, errors: p.Errors}
}

// csvLines reads CSV with a header line that names the columns.
type csvLines struct {
	lineMaker
	r       *csv.Reader
	in      *capped
	columns []string
}

// capped ends a line that is far too long: a quote that is never closed takes the
// rest of the file for one.
type capped struct {
	r    io.Reader
	left int
}

func (c *capped) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errLineTooLong
	}
	n, err := c.r.Read(p)
	c.left -= n
	return n, err
}

var errLineTooLong = fmt.Errorf("a line of more than %d bytes; perhaps a quote is never closed", maxImportLine)

func newCSVLines(in io.Reader, m lineMaker) (*csvLines, error) {
	c := &csvLines{lineMaker: m, in: &capped{r: in, left: 2 * maxImportLine}}
	c.r = csv.NewReader(c.in)
	head, err := c.r.Read()
	if err == io.EOF {
		return nil, io.EOF
	}
	if err != nil {
		return nil, csvFault(err)
	}
	for i, name := range head {
		name = strings.ToLower(strings.TrimSpace(name))
		if rest, ok := strings.CutPrefix(head[i], "metadata."); ok && rest != "" {
			name = head[i]
		} else if !slices.Contains(strings.Split(importColumns, ", "), name) {
			return nil, fmt.Errorf("line 1: column %d is none of %s; the first line names the columns", i+1, importColumns)
		}
		if slices.Contains(c.columns, name) {
			return nil, fmt.Errorf("line 1: column %d stands twice", i+1)
		}
		c.columns = append(c.columns, name)
	}
	if slices.Contains(c.columns, "key") && !m.plaintext {
		return nil, errPlaintextFile{1}
	}
	return c, nil
}

// csvFault keeps what csv says: it never repeats the text.
func csvFault(err error) error {
	if p, ok := errors.AsType[*csv.ParseError](err); ok {
		return fmt.Errorf("line %d: %w", p.StartLine, p.Err)
	}
	return err
}

func (c *csvLines) next() (importLine, error) {
	c.in.left = 2 * maxImportLine
	cells, err := c.r.Read()
	if p, ok := errors.AsType[*csv.ParseError](err); ok {
		return bad(p.StartLine, "", p.Err.Error()), nil
	}
	if err != nil {
		return importLine{}, err
	}
	n, _ := c.r.FieldPos(0)
	var row importRow
	for i, cell := range cells {
		if cell == "" {
			if value, ok := restricting[c.columns[i]]; ok {
				return bad(n, c.columns[i], "the cell is empty: write "+value), nil
			}
			continue // as if the column were not there
		}
		if field, message := row.set(c.columns[i], cell); message != "" {
			return bad(n, field, message), nil
		}
	}
	return c.line(n, &row)
}

// listColumns are the columns whose cells hold lists.
var listColumns = []string{"scopes", "roles", "resources", "allowlist"}

// restricting names the columns that take power from keys, and how a line says that
// it takes none: a cell that was lost on its way must not make a key that works from
// everywhere, reaches all, or lives again.
var restricting = map[string]string{
	"allowlist": "- for any address",
	"resources": "- for the whole tenant",
	"status":    "active, disabled, revoked or expired",
}

// set fills in one cell that is not empty, and names its fault without
// repeating it. A cell that says nothing is refused: read as absent, it would
// take the column's default, and that of an allowlist is any address.
func (r *importRow) set(column, cell string) (field, message string) {
	if strings.TrimSpace(cell) == "" {
		return column, "the cell holds white space only: want a value, or an empty cell for the default"
	}
	var list []string
	if slices.Contains(listColumns, column) {
		var ok bool
		if list, ok = cellList(cell); !ok {
			return column, "an element of the list is empty: want elements separated by spaces, commas or semicolons, or - for the empty list"
		}
	}
	number := func(to *int64) (string, string) {
		v, err := strconv.ParseInt(cell, 10, 64)
		if err != nil {
			return column, "want an integer without fraction or exponent, as 60"
		}
		*to = v
		return "", ""
	}
	if r.Limit == nil && strings.HasPrefix(column, "limit.") {
		r.Limit = new(keyspace.Limit)
	}
	switch column {
	case "digest":
		r.Digest = cell
	case "key":
		r.Key = &cell
	case "hint":
		r.Hint = cell
	case "tenant":
		r.Tenant = events.TenantID(cell)
	case "name":
		r.Name = cell
	case "type":
		r.Type = cell
	case "environment":
		r.Environment = cell
	case "scopes":
		r.Scopes = new(list)
	case "roles":
		for _, role := range list {
			r.Roles = append(r.Roles, events.RoleID(role))
		}
	case "resources":
		for _, s := range list {
			kind, id, ok := strings.Cut(s, "/")
			if !ok {
				return column, "want kind/id, as project/proj_1"
			}
			r.Resources = append(r.Resources, events.Resource{Kind: kind, ID: id})
		}
	case "allowlist":
		r.Allowlist = list
	case "expires_at":
		r.ExpiresAt = commands.Some(cell)
		if cell == "never" {
			r.ExpiresAt = commands.Null[string]()
		}
	case "expires_in":
		r.ExpiresIn = &cell
	case "limit.plan":
		r.Limit.Plan = cell
	case "limit.per_minute":
		return number(&r.Limit.PerMinute)
	case "limit.burst":
		return number(&r.Limit.Burst)
	case "status":
		r.Status = events.Status(cell)
	case "revoked_at":
		r.RevokedAt = cell
	case "revoke_code":
		r.RevokeCode = events.RevokeCode(cell)
	case "reason":
		r.Reason = cell
	default:
		if r.Metadata == nil {
			r.Metadata = map[string]string{}
		}
		r.Metadata[strings.TrimPrefix(column, "metadata.")] = cell
	}
	return "", ""
}

// cellList splits a cell at spaces, commas and semicolons. "-" is the empty list,
// which for scopes is not the same as an empty cell. ok is false when an element
// is empty: when nothing but white space stands before, between or after commas
// and semicolons.
func cellList(cell string) (list []string, ok bool) {
	if cell == "-" {
		return []string{}, true
	}
	for part := range strings.SplitSeq(strings.ReplaceAll(cell, ";", ","), ",") {
		elements := strings.Fields(part)
		if len(elements) == 0 {
			return nil, false
		}
		list = append(list, elements...)
	}
	return list, true
}
