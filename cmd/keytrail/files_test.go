package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/internal/api"
)

// plant makes a file that another user of the machine could have prepared: by
// owner where the test may give files away, else by mode.
func plant(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
}

const plantedKey = "kt_root_planted0planted0planted0planted0"

// Whatever is planted in a data directory, the process stops before it starts
// anything, names the file and trusts none of it.
func TestPlantedDataDirectoryIsRejected(t *testing.T) {
	for _, role := range []struct {
		name string
		args []string
	}{
		{"up", []string{"up", "--listen", "127.0.0.1:0"}},
		{"log", []string{"log", "--listen", "127.0.0.1:0"}},
	} {
		for _, name := range []string{"root.key", "log.id", "lock", "log", "clickhouse", "snapshots"} {
			t.Run(role.name+"/"+name, func(t *testing.T) {
				for _, user := range []string{"ADMIN", "CTRL"} {
					t.Setenv("KEYTRAIL_"+user+"_PASSWORD", "test")
				}
				dir := t.TempDir()
				if err := os.Chmod(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				plant(t, filepath.Join(dir, name), plantedKey)
				var out, errs bytes.Buffer
				code := run(t.Context(), append(role.args, "--dir", dir), nil, &out, &errs)
				if code != exitFailed || !strings.Contains(errs.String(), filepath.Join(dir, name)) || strings.Contains(out.String()+errs.String(), plantedKey) {
					t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
				}
				if members, err := os.ReadDir(dir); err != nil || len(members) != 1 {
					t.Errorf("%v, %v: something was made beside the planted file", members, err)
				}
			})
		}
		t.Run(role.name+"/a directory for all", func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "root.key"), []byte(plantedKey), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			for _, user := range []string{"ADMIN", "CTRL"} {
				t.Setenv("KEYTRAIL_"+user+"_PASSWORD", "test")
			}
			code := run(t.Context(), append(role.args, "--dir", dir), nil, &out, &errs)
			if code != exitFailed || !strings.Contains(errs.String(), "other users can change it") {
				t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
			}
		})
	}
}

func TestPlantedKeyFilesAreRejected(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s came through", r.Method, r.URL)
	}))
	defer endpoint.Close()
	setenv(t, "KEYTRAIL_ROOT_KEY", "")
	file := filepath.Join(t.TempDir(), "planted")
	plant(t, file, plantedKey)
	for _, c := range []struct {
		env  string
		args []string
	}{
		{"", []string{"--url", endpoint.URL, "--key-file", file, "key", "list", "--keyspace", "k"}},
		{"", []string{"--url", endpoint.URL, "verify", "--keyspace", "k", "--secret-file", file}},
		{"KEYTRAIL_CTRL_PASSWORD_FILE", []string{"control", "--nats", "nats://127.0.0.1:1", "--listen", "127.0.0.1:0"}},
		{"KEYTRAIL_ADMIN_PASSWORD_FILE", []string{"init", "--nats", "nats://127.0.0.1:1"}},
		{"", []string{"verifier", "--nats", "nats://127.0.0.1:1", "--nats-key", file}},
		{"", []string{"verifier", "--nats", "nats://127.0.0.1:1", "--nats-ca", file}},
	} {
		t.Run(strings.Join(c.args, " ")+c.env, func(t *testing.T) {
			if c.env != "" {
				t.Setenv(c.env, file)
			}
			var out, errs bytes.Buffer
			code := run(t.Context(), c.args, nil, &out, &errs)
			if code != exitFailed || !strings.Contains(errs.String(), file+" has mode 0666: other users can change it") || strings.Contains(errs.String(), plantedKey) {
				t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
			}
		})
	}
}

// exportEndpoint answers an export with rows, and with the trailers if whole.
func exportEndpoint(t *testing.T, rows string, whole *bool, asked *int) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked++
		w.Header().Set("Trailer", "Keytrail-Rows, Keytrail-Digest")
		io.WriteString(w, rows)
		if *whole {
			sum := newDigest()
			io.WriteString(sum, rows)
			w.Header().Set("Keytrail-Rows", "2")
			w.Header().Set("Keytrail-Digest", sum.String())
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func TestBrokenOffExportDoesNotBlockTheRetry(t *testing.T) {
	const rows = "{\"n\":1}\n{\"n\":2}\n"
	var whole bool
	var asked int
	s := exportEndpoint(t, rows, &whole, &asked)
	file := filepath.Join(t.TempDir(), "uses.jsonl")

	_, errs, code := cliAt(t, s.URL, "kt_x", "audit", "export", "-o", file)
	if code != exitFailed || !strings.Contains(errs, file+".part") {
		t.Errorf("cut off: exit %d: %s", code, errs)
	}
	if _, err := os.Lstat(file); !os.IsNotExist(err) {
		t.Errorf("an export that was cut off has its name: %v", err)
	}
	if b, err := os.ReadFile(file + ".part"); err != nil || string(b) != rows {
		t.Errorf("what arrived: %q, %v", b, err)
	}

	whole = true
	if _, errs, code := cliAt(t, s.URL, "kt_x", "audit", "export", "-o", file); code != 0 {
		t.Fatalf("the retry: exit %d: %s", code, errs)
	}
	if b, err := os.ReadFile(file); err != nil || sha256.Sum256(b) != sha256.Sum256([]byte(rows)) {
		t.Errorf("the retry wrote %q, %v", b, err)
	}
	if _, err := os.Lstat(file + ".part"); !os.IsNotExist(err) {
		t.Errorf("the part is still there: %v", err)
	}
}

// An export is on the record as soon as it is asked for, so the file comes first.
func TestExportWithoutAFileIsNotAskedFor(t *testing.T) {
	var whole bool
	var asked int
	s := exportEndpoint(t, "", &whole, &asked)
	dir := t.TempDir()
	there := filepath.Join(dir, "there.csv")
	if err := os.WriteFile(there, []byte("of last week"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.csv")
	if err := os.Symlink(there, link+".part"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{there, link, filepath.Join(dir, "no", "such", "directory.csv"), dir} {
		if _, errs, code := cliAt(t, s.URL, "kt_x", "audit", "export", "-o", file); code != exitFailed || !strings.Contains(errs, "write the export") {
			t.Errorf("%s: exit %d: %s", file, code, errs)
		}
	}
	if b, err := os.ReadFile(there); err != nil || string(b) != "of last week" {
		t.Errorf("the file that was there holds %q, %v", b, err)
	}
	if asked != 0 {
		t.Errorf("%d exports were asked for", asked)
	}
}

// The rejects of a run that broke off are in the .part file; those of the run
// before stay until a run is through.
func TestRejectsOfABrokenOffImport(t *testing.T) {
	d, s := newImportEndpoint(t)
	rejects := filepath.Join(t.TempDir(), "rejects.jsonl")
	if err := os.WriteFile(rejects, []byte("of the run before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := `{"key":"` + plain + `","tenant":"t1","name":"bad"}` + "\n" + `{"key":"sk_live_0000000000000000000000000001","tenant":"t1","name":"good"}` + "\n"
	d.before = func(n int) *api.Problem {
		if n == 2 {
			return api.Errorf(http.StatusForbidden, "forbidden", "not any more")
		}
		return nil
	}
	_, errs, code := importAt(t, s.URL, text, "--batch", "1", "--rejects", rejects)
	if code != exitFailed || !strings.Contains(errs, "rejected lines so far are in "+rejects+".part") {
		t.Errorf("broken off: exit %d: %s", code, errs)
	}
	if b, err := os.ReadFile(rejects); err != nil || string(b) != "of the run before\n" {
		t.Errorf("the rejects of the run before: %q, %v", b, err)
	}
	if b, err := os.ReadFile(rejects + ".part"); err != nil || !strings.Contains(string(b), `"line":1`) {
		t.Errorf("the rejects so far: %q, %v", b, err)
	}

	d.before = nil
	if _, errs, code := importAt(t, s.URL, text, "--batch", "1", "--rejects", rejects); code != exitFailed || strings.Contains(errs, ".part") {
		t.Errorf("again: exit %d: %s", code, errs)
	}
	if b, err := os.ReadFile(rejects); err != nil || !strings.Contains(string(b), `"line":1`) {
		t.Errorf("the rejects: %q, %v", b, err)
	}
}
