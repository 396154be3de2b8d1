package engine

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
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
	if err := os.MkdirAll(filepath.Join(path, "data"), 0o700); err != nil {
		return nil, fmt.Errorf("make the engine's directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the engine's lock: %w", err)
	}
	ok, err := tryLock(lock)
	if err == nil && !ok {
		err = fmt.Errorf("%w: another Keytrail runs its local ClickHouse engine in %s; stop it, or choose another directory", ErrDirInUse, path)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &dir{path: path, lock: lock}, nil
}

// close lets go of the directory. The engine must be gone.
func (d *dir) close() error { return d.lock.Close() }

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

// password returns the password of earlier starts, or makes one.
func (d *dir) password() (string, error) {
	path := d.file("password")
	kept, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh := rand.Text()
		return fresh, writeFile(path, []byte(fresh+"\n"))
	}
	if err != nil {
		return "", fmt.Errorf("read the engine's password: %w", err)
	}
	password := strings.TrimSpace(string(kept))
	if password == "" {
		return "", fmt.Errorf("%s is empty: remove it, and a new password is made", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return "", fmt.Errorf("close the engine's password to others: %w", err)
	}
	return password, nil
}

// writeConfig writes what the engine reads at its start.
func (d *dir) writeConfig(cfg Config, password string) error {
	sum := sha256.Sum256([]byte(password))
	values := map[string]any{
		"Path":         d.file("data"),
		"Users":        d.file("users.xml"),
		"MemoryLimit":  cfg.MemoryLimit,
		"QueryLimit":   cfg.MemoryLimit / 10 * 7,
		"MarkCache":    cfg.MarkCache,
		"User":         userName,
		"PasswordHash": hex.EncodeToString(sum[:]),
		"BootQueries":  bootQueries,
	}
	for name, text := range map[string]*template.Template{"config.xml": configXML, "users.xml": usersXML} {
		var b bytes.Buffer
		if err := text.Execute(&b, values); err != nil {
			return fmt.Errorf("render %s: %w", name, err)
		}
		if err := writeFile(d.file(name), b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces the file whole, 0600. crash before the rename: the old
// file, or none, and a leftover that the next write replaces.
func writeFile(path string, data []byte) error {
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(part, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
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
  <access_control_improvements><table_engines_require_grant>true</table_engines_require_grant></access_control_improvements>
</clickhouse>
`)

// The engine logs itself in as default, without a password, from loopback; with
// a password on it the engine does not start. So default may open the ports and
// nothing else, and its quota is exactly the statements that do so: one more and
// it is refused (code 201), SYSTEM STOP LISTEN by a passer-by included. The
// interval is ten years, and each start of the engine counts anew.
//
// The user's query limit leaves room for inserts and merges beside one big query.
var usersXML = mustXML("users.xml", `<clickhouse>
  <profiles>
    <default>
      <async_insert>0</async_insert>
      <max_memory_usage>{{.QueryLimit}}</max_memory_usage>
    </default>
    <boot><max_execution_time>5</max_execution_time><max_threads>1</max_threads></boot>
  </profiles>
  <quotas>
    <default/>
    <boot><interval><duration>315360000</duration><queries>{{.BootQueries}}</queries></interval></boot>
  </quotas>
  <users>
    <default>
      <no_password/>
      <networks><ip>127.0.0.1</ip></networks>
      <profile>boot</profile>
      <quota>boot</quota>
      <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>
    </default>
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
