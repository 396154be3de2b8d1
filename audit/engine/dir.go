package engine

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/keytrail/keytrail/internal/files"
)

// The one user and the one database that exist from the start.
const (
	userName     = "keytrail"
	databaseName = "keytrail"
)

// dir is Config.Dir, held by this process:
//
//	lock         its flock says who owns the directory (invariant 5)
//	password     of the user keytrail, made on the first start, 0600
//	config.xml   limits, written at each start
//	users.xml    users, written at each start, 0600
//	data/        the engine's own
type dir struct {
	path string
	lock *os.File
}

// openDir makes the directory if needed and takes it. ErrDirInUse if another
// process has it, or this one already.
func openDir(path string) (*dir, error) {
	if err := files.MakeDataDir(path); err != nil {
		return nil, fmt.Errorf("the engine's directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(path, "data"), 0o700); err != nil {
		return nil, fmt.Errorf("make the engine's directory: %w", err)
	}
	lock, err := files.Lock(filepath.Join(path, "lock"))
	if errors.Is(err, files.ErrLocked) {
		err = fmt.Errorf("%w: another Keytrail runs its local ClickHouse engine in %s; stop it, or choose another directory", ErrDirInUse, path)
	}
	if err != nil {
		return nil, err
	}
	return &dir{path: path, lock: lock}, nil
}

// close lets go of the directory. The engine must be gone.
func (d *dir) close() error { return d.lock.Close() }

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

// password returns the password of earlier starts, or makes one.
func (d *dir) password() (string, error) {
	path := d.file("password")
	password, err := files.ReadOwn(path)
	if err != nil {
		return "", fmt.Errorf("read the engine's password: %w", err)
	}
	if password != "" {
		return password, nil
	}
	password = rand.Text()
	if err := files.Write(path, []byte(password+"\n")); err != nil {
		return "", fmt.Errorf("keep the engine's password: %w", err)
	}
	return password, nil
}

// writeConfig writes what the engine reads at its start.
func (d *dir) writeConfig(cfg Config, l launcher, password string) error {
	sum := sha256.Sum256([]byte(password))
	values := map[string]any{
		"Path":         d.file("data"),
		"Users":        d.file("users.xml"),
		"MemoryLimit":  cfg.MemoryLimit,
		"QueryLimit":   cfg.MemoryLimit / 10 * 7,
		"MarkCache":    cfg.MarkCache,
		"User":         userName,
		"PasswordHash": hex.EncodeToString(sum[:]),
		"Boot":         l.lib != "",
		"BootQueries":  bootQueries + cfg.spareQueries,
	}
	for name, text := range map[string]*template.Template{"config.xml": configXML, "users.xml": usersXML} {
		var b bytes.Buffer
		if err := text.Execute(&b, values); err != nil {
			return fmt.Errorf("render %s: %w", name, err)
		}
		if err := files.Write(d.file(name), b.Bytes()); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

func mustXML(name, text string) *template.Template {
	return template.Must(template.New(name).Funcs(template.FuncMap{"xml": func(s string) (string, error) {
		var b strings.Builder
		err := xml.EscapeText(&b, []byte(s))
		return b.String(), err
	}}).Parse(text))
}

// Every cache of MergeTree tables that defaults to gigabytes is set: together they
// would be many times the memory limit, which counts them.
//
// Of the HTTP port only the two endpoints that we use are served: not the web
// consoles (/play and others), and no query by GET, which a page could embed.
var configXML = mustXML("config.xml", `<clickhouse>
  <users_config>{{xml .Users}}</users_config>
  <timezone>UTC</timezone>
  <max_server_memory_usage>{{.MemoryLimit}}</max_server_memory_usage>
  <mark_cache_size>{{.MarkCache}}</mark_cache_size>
  <index_mark_cache_size>{{.MarkCache}}</index_mark_cache_size>
  <primary_index_cache_size>{{.MarkCache}}</primary_index_cache_size>
  <text_index_tokens_cache_size>{{.MarkCache}}</text_index_tokens_cache_size>
  <text_index_header_cache_size>{{.MarkCache}}</text_index_header_cache_size>
  <text_index_postings_cache_size>{{.MarkCache}}</text_index_postings_cache_size>
  <http_handlers>
    <rule><methods>GET,HEAD</methods><url>/ping</url><handler><type>ping</type></handler></rule>
    <rule><methods>POST</methods><url>/</url><handler><type>dynamic_query_handler</type><query_param_name>query</query_param_name></handler></rule>
  </http_handlers>
  <access_control_improvements><table_engines_require_grant>true</table_engines_require_grant></access_control_improvements>
</clickhouse>
`)

// The library logs itself in as default, without a password and from 127.0.0.1;
// with a password on default, or with another network, it does not start. But it
// logs in before it opens a port, and stays logged in as long as it lives. So
// default may have one session: the library's own. Every other login as default
// is rejected (code 700) before any statement is read.
//
// The rest is a second line of defence. Grants and the quota would let a stranger
// run a SELECT without a table, and that reads files: SELECT file('/etc/passwd').
// The quota's interval is ten years, and each start of the engine counts anew.
//
// A clickhouse binary logs nobody in, and has no default at all.
//
// The user's query limit leaves room for inserts and merges beside one big query.
var usersXML = mustXML("users.xml", `<clickhouse>
  <profiles>
    <default>
      <async_insert>0</async_insert>
      <max_memory_usage>{{.QueryLimit}}</max_memory_usage>
    </default>
    {{- if .Boot}}
    <boot>
      <max_sessions_for_user>1</max_sessions_for_user>
      <max_execution_time>5</max_execution_time>
      <max_threads>1</max_threads>
    </boot>
    {{- end}}
  </profiles>
  <quotas>
    <default/>
    {{- if .Boot}}
    <boot><interval><duration>315360000</duration><queries>{{.BootQueries}}</queries></interval></boot>
    {{- end}}
  </quotas>
  <users>
    {{- if .Boot}}
    <default>
      <no_password/>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>boot</profile>
      <quota>boot</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>
    </default>
    {{- end}}
    <{{.User}}>
      <password_sha256_hex>{{.PasswordHash}}</password_sha256_hex>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <access_management>1</access_management>
    </{{.User}}>
  </users>
</clickhouse>
`)
