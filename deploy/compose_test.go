// Package deploy_test checks what is deployed without deploying it: smoke.sh does
// that.
package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// service is the part of a compose service that the tests look at.
type service struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Profiles    []string          `yaml:"profiles"`
	DependsOn   any               `yaml:"depends_on"`
	Privileged  bool              `yaml:"privileged"`
	NetworkMode string            `yaml:"network_mode"`
	CapDrop     []string          `yaml:"cap_drop"`
	ReadOnly    bool              `yaml:"read_only"`
}

type composeFile struct {
	Services map[string]service `yaml:"services"`
	Volumes  map[string]any     `yaml:"volumes"`
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func compose(t *testing.T) (text string, c composeFile) {
	t.Helper()
	text = read(t, "../docker-compose.yml")
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) < 9 {
		t.Fatalf("%d services", len(c.Services))
	}
	return text, c
}

// keytrail reports whether the service runs our image.
func (s service) keytrail() bool { return strings.Contains(s.Image, "KEYTRAIL_IMAGE") }

func TestBothComposesReadIt(t *testing.T) {
	text, _ := compose(t)
	var top map[string]any
	if err := yaml.Unmarshal([]byte(text), &top); err != nil {
		t.Fatal(err)
	}
	for key := range top {
		if !slices.Contains([]string{"services", "volumes"}, key) && !strings.HasPrefix(key, "x-") {
			t.Errorf("top-level key %q: docker-compose 1.29 refuses name, the plugin complains of version", key)
		}
	}
	for _, unknown := range []string{"include:", "develop:", "!reset", "required:", "pull_policy:"} {
		if strings.Contains(text, unknown) {
			t.Errorf("%s is unknown to docker-compose 1.29", unknown)
		}
	}
}

func TestNothingIsExposed(t *testing.T) {
	_, c := compose(t)
	for name, s := range c.Services {
		for _, p := range s.Ports {
			if !regexp.MustCompile(`^127\.0\.0\.1:\$\{[A-Z0-9_]+:-\d+\}:\d+$`).MatchString(p) {
				t.Errorf("%s publishes %s: want 127.0.0.1 and a port from the environment", name, p)
			}
		}
		if s.Privileged || s.NetworkMode != "" {
			t.Errorf("%s leaves its container", name)
		}
		if s.keytrail() && (!s.ReadOnly || !slices.Contains(s.CapDrop, "ALL")) {
			t.Errorf("%s is not read-only without capabilities", name)
		}
	}
}

func TestImagesArePinned(t *testing.T) {
	_, c := compose(t)
	want := map[string]string{"NATS_IMAGE": "nats:2.15.2", "CLICKHOUSE_IMAGE": "clickhouse/clickhouse-server:26.7", "KEYTRAIL_IMAGE": "keytrail:dev"}
	for name, s := range c.Services {
		m := regexp.MustCompile(`^\$\{([A-Z_]+):-(.+)\}$`).FindStringSubmatch(s.Image)
		if m == nil || want[m[1]] != m[2] {
			t.Errorf("%s runs %q", name, s.Image)
		}
	}
	// The server in containers is the one that is embedded, and the one tested.
	if !strings.Contains(read(t, "../go.mod"), "github.com/nats-io/nats-server/v2 v"+strings.TrimPrefix(want["NATS_IMAGE"], "nats:")) {
		t.Error("go.mod has another NATS server than " + want["NATS_IMAGE"])
	}
	for file, image := range map[string]string{"../events/eventlog/containers_test.go": want["NATS_IMAGE"], "../audit/engine/enginetest/container.go": want["CLICKHOUSE_IMAGE"]} {
		if !strings.Contains(read(t, file), `"`+image+`"`) {
			t.Errorf("%s does not test on %s", file, image)
		}
	}
}

// Each role gets the password of its own user, and no other.
func TestPasswordsGoWhereTheyBelong(t *testing.T) {
	text, c := compose(t)
	nats := []string{"ADMIN", "CTRL", "SYS", "ROUTE", "VERIFIER_1", "VERIFIER_2"}
	want := map[string][]string{
		"nats-1": nats, "nats-2": nats, "nats-3": nats, "clickhouse": nil,
		"init": {"ADMIN"}, "checkpoint-key": nil, "control": {"CTRL"}, "auditor": {"CTRL"}, "cli": {"CTRL"},
		"verifier-1": {"NODE"}, "verifier-2": {"NODE"},
	}
	for name, s := range c.Services {
		var got []string
		for v := range s.Environment {
			if user, ok := strings.CutPrefix(v, "KEYTRAIL_"); ok && strings.HasSuffix(user, "_PASSWORD") {
				got = append(got, strings.TrimSuffix(user, "_PASSWORD"))
			}
		}
		expected := slices.Sorted(slices.Values(want[name]))
		if slices.Sort(got); !slices.Equal(got, expected) {
			t.Errorf("%s has the passwords of %v, want %v", name, got, expected)
		}
		if dsn := s.Environment["KEYTRAIL_CLICKHOUSE"]; dsn != "" && strings.HasPrefix(name, "verifier") {
			t.Errorf("%s can reach ClickHouse", name)
		}
	}
	// Every password must be given, and env.sh makes exactly those.
	made := regexp.MustCompile(`for name in (.+); do`).FindStringSubmatch(read(t, "env.sh"))
	if made == nil {
		t.Fatal("env.sh has no list of names")
	}
	used := map[string]bool{}
	for _, m := range regexp.MustCompile(`\$\{([A-Z0-9_]+)_PASSWORD(:\?[^}]*)?(:-[^}]*)?\}`).FindAllStringSubmatch(text, -1) {
		used[m[1]] = used[m[1]] || m[2] != ""
		if m[3] != "" {
			t.Errorf("%s_PASSWORD has a default", m[1])
		}
	}
	for _, name := range strings.Fields(made[1]) {
		if !used[name] {
			t.Errorf("env.sh makes %s_PASSWORD, which docker-compose.yml does not insist on", name)
		}
		delete(used, name)
	}
	for name := range used {
		t.Errorf("env.sh does not make %s_PASSWORD", name)
	}
}

// Variables and flags that no role knows would be ignored, or stop the role.
func TestRolesKnowTheirSettings(t *testing.T) {
	_, c := compose(t)
	files, err := filepath.Glob("../cmd/keytrail/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %d files", err, len(files))
	}
	var source strings.Builder
	for _, f := range files {
		source.WriteString(read(t, f))
	}
	nats := read(t, "nats/nats.conf") + read(t, "nats/nodes.conf")
	for name, s := range c.Services {
		for v := range s.Environment {
			known := true
			switch {
			case strings.HasPrefix(name, "nats-"):
				known = strings.Contains(nats, "$"+v)
			case s.keytrail() && !strings.HasSuffix(v, "_PASSWORD"):
				known = strings.Contains(source.String(), `"`+v+`"`)
			}
			if !known {
				t.Errorf("%s: nothing reads %s", name, v)
			}
		}
		if !s.keytrail() || len(s.Command) == 0 {
			continue
		}
		if !strings.Contains(source.String(), `Use: "`+s.Command[0]+`"`) {
			t.Errorf("%s: keytrail has no command %q", name, s.Command[0])
		}
		for _, arg := range s.Command[1:] {
			if flag, ok := strings.CutPrefix(arg, "--"); ok && !strings.Contains(source.String(), `"`+flag+`"`) {
				t.Errorf("%s: no role has the flag %s", name, arg)
			}
		}
	}
	// The image is for every role: an address of HTTP endpoints and one of the log.
	image := regexp.MustCompile(`(KEYTRAIL_[A-Z_]+)=(\S+)`).FindAllStringSubmatch(read(t, "Dockerfile"), -1)
	if len(image) != 3 {
		t.Errorf("the image sets %v", image)
	}
	for _, m := range image {
		if !strings.Contains(source.String(), `"`+m[1]+`"`) {
			t.Errorf("the image: nothing reads %s", m[1])
		}
		if port := strings.TrimPrefix(m[2], "0.0.0.0:"); port != m[2] && !regexp.MustCompile(`(?m)^EXPOSE .*\b`+port+`\b`).MatchString(read(t, "Dockerfile")) {
			t.Errorf("the image listens on %s for %s and does not expose it", m[2], m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\$(NATS_[A-Z_]+|KEYTRAIL_[A-Z0-9_]+)`).FindAllStringSubmatch(nats, -1) {
		if _, ok := c.Services["nats-1"].Environment[m[1]]; !ok {
			t.Errorf("nats.conf wants %s, which the servers are not given", m[1])
		}
	}
}

func TestVolumesAreThere(t *testing.T) {
	_, c := compose(t)
	for name, s := range c.Services {
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, "./") {
				if _, err := os.Stat(filepath.Join("..", from)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			} else if _, ok := c.Volumes[from]; !ok {
				t.Errorf("%s: volume %s is not declared", name, from)
			}
		}
	}
}

// Alerts on metrics that do not exist never fire.
func TestAlertsAreAboutMetricsThatExist(t *testing.T) {
	alerts := read(t, "prometheus/alerts.yml")
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Expr        string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(alerts), &rules); err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, pattern := range []string{"../*/metrics.go", "../verifier/limits/metrics.go", "../projections/*/metrics.go", "../projections/snapshots/store.go", "../commands/expirer.go", "../cmd/keytrail/streams.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, f := range files {
			source.WriteString(read(t, f))
		}
	}
	seen := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Expr == "" || r.Annotations["summary"] == "" {
				t.Errorf("rule %+v is not whole", r)
			}
			for _, name := range regexp.MustCompile(`keytrail_[a-z_]+`).FindAllString(r.Expr, -1) {
				seen++
				name = strings.TrimSuffix(name, "_bucket")
				short, audit := strings.CutPrefix(name, "keytrail_audit_")
				if !strings.Contains(source.String(), `"`+name+`"`) && !(audit && strings.Contains(source.String(), `"`+short+`"`)) {
					t.Errorf("%s: nothing exports %s", r.Alert, name)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d metrics were looked up", seen)
	}
}

// TestRunbookSections: every section that an alert or a sentence of the program
// names is there, and every alert of the runbook is one of the alerts.
func TestRunbookSections(t *testing.T) {
	runbook, alerts := read(t, "runbook.md"), read(t, "prometheus/alerts.yml")
	named := map[string]string{}
	for _, m := range regexp.MustCompile(`runbook: "([^"]+)"`).FindAllStringSubmatch(alerts, -1) {
		for section := range strings.SplitSeq(m[1], "; ") {
			named[section] = "alerts.yml"
		}
	}
	sources, err := filepath.Glob("../cmd/keytrail/*.go")
	if err != nil || len(sources) == 0 {
		t.Fatal(err)
	}
	for _, f := range sources {
		for _, m := range regexp.MustCompile(`\(runbook: ([^)]+)\)`).FindAllStringSubmatch(read(t, f), -1) {
			named[m[1]] = f
		}
	}
	if len(named) < 6 {
		t.Errorf("only %d sections are named", len(named))
	}
	for section, by := range named {
		if !strings.Contains(runbook, "\n## "+section+"\n") {
			t.Errorf("%s names the section %q, which runbook.md does not have", by, section)
		}
	}
	for _, m := range regexp.MustCompile("`(Keytrail[A-Za-z]+)`").FindAllStringSubmatch(runbook, -1) {
		if !strings.Contains(alerts, "alert: "+m[1]+"\n") {
			t.Errorf("runbook.md names the alert %s, which alerts.yml does not have", m[1])
		}
	}
}
