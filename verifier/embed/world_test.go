package embed_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections/snapshots"
	"github.com/keytrail/keytrail/verifier/embed"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(logtest.Settled(m), goleak.Cleanup(os.Exit))
}

// patience is how long a test waits for what must happen.
const patience = 2 * time.Minute

// deployment is a log on a JetStream server of its own, and a control beside it.
type deployment struct {
	dir      string
	srv      *server.Server
	control  *embed.Verifier
	http     *httptest.Server
	log      *eventlog.Log // with control's rights
	root     events.Secret
	password dial.Password // of the node app-1
	ends     []func()
}

// deploy starts one, or ends the program. dir is removed by end.
func deploy() *deployment {
	d := &deployment{password: dial.Password("p" + rand.Text())}
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var err error
	d.dir, err = os.MkdirTemp("", "embed")
	must(err)
	d.ends = append(d.ends, func() { os.RemoveAll(d.dir) })
	hash, err := bcrypt.GenerateFromPassword([]byte(string(d.password)), bcrypt.MinCost)
	must(err)
	nodes, err := server.NodeConf("app-1", string(hash))
	must(err)
	quiet := slog.New(slog.DiscardHandler)
	d.srv, err = server.Start(server.Config{Dir: d.dir + "/log", Listen: "127.0.0.1:-1", Nodes: nodes, Logger: quiet})
	must(err)
	d.ends = append(d.ends, d.srv.Stop)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	admin, err := d.srv.ConnectAdmin()
	must(err)
	defer admin.Close()
	id, err := server.Init(ctx, admin, server.InitConfig{MaxStore: 1 << 30})
	must(err)
	nc, err := d.srv.Connect()
	must(err)
	d.ends = append(d.ends, nc.Close)
	d.log, err = eventlog.Open(ctx, nc, eventlog.Options{AtLeast: events.Position{Log: id}, Logger: quiet})
	must(err)
	def := events.BuiltinDefinition()
	t, _ := def.Type("")
	d.root, err = commands.NewSecret(t, t.Environment(), rand.Reader)
	must(err)
	_, err = commands.Bootstrap(ctx, d.log, d.root, events.At(time.Now()))
	must(err)
	views, err := snapshots.Restore(ctx, snapshots.Config{Log: d.log, Logger: quiet}, true)
	must(err)
	d.control, err = embed.Open(ctx, embed.Config{Name: "control", Log: d.log, Views: views, Logger: quiet})
	must(err)
	d.ends = append(d.ends, func() { d.control.Close(context.Background()) })
	h := commands.New(commands.Config{Log: d.log, Leases: d.log, Confirm: d.control.Node().Confirm, Dir: views.Directory, Node: "control", Logger: quiet})
	running, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Run(running) }()
	d.ends = append(d.ends, func() { stop(); <-done })
	mux := http.NewServeMux()
	h.Routes(mux, d.control.Node())
	d.http = httptest.NewServer(api.Handler(mux))
	d.ends = append(d.ends, d.http.Close)
	d.call("PUT", "/v1/keyspaces/reports", `{"key_types":[{"name":"secret","prefix":"rk_"}],"scopes":[{"name":"read"},{"name":"write","implies":["read"]}],"resources":["project"],"credential":{"header":"X-Reports-Key"}}`)
	return d
}

func (d *deployment) end() {
	for len(d.ends) > 0 {
		last := len(d.ends) - 1
		d.ends[last]()
		d.ends = d.ends[:last]
	}
}

// call sends a request of the root key and returns the data of its answer.
func (d *deployment) call(method, path, body string) map[string]any {
	req, err := http.NewRequest(method, d.http.URL+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", "Bearer "+d.root.Reveal())
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.http.Client().Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var ans struct {
		Data     map[string]any `json:"data"`
		Position string         `json:"position"`
	}
	if err == nil {
		err = json.Unmarshal(b, &ans)
	}
	if err != nil || resp.StatusCode/100 != 2 {
		panic(fmt.Sprint(method, " ", path, ": ", resp.Status, " ", string(b), err))
	}
	if ans.Data == nil {
		ans.Data = map[string]any{}
	}
	ans.Data["position"] = ans.Position
	return ans.Data
}

// create makes a key of the tenant acme; more are members of the request.
func (d *deployment) create(name, more string) (id string, secret events.Secret) {
	k := d.call("POST", "/v1/keyspaces/reports/keys", fmt.Sprintf(`{"tenant":"acme","name":%q%s}`, name, more))
	return k["id"].(string), events.NewSecret(k["key"].(string))
}

// config is what the program app-1 is told.
func (d *deployment) config() embed.Config {
	return embed.Config{URL: d.srv.URL(), Name: "app-1", Password: d.password, LogID: d.log.ID(), Logger: slog.New(slog.DiscardHandler)}
}

// open opens the verifier of app-1.
func (d *deployment) open(t *testing.T, change func(*embed.Config)) *embed.Verifier {
	t.Helper()
	cfg := d.config()
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := embed.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// records returns the batches of the node on the use stream.
func (d *deployment) records(t *testing.T, node events.NodeID) (list []events.UseBatch) {
	t.Helper()
	last, err := d.log.LastUse(t.Context())
	for after := events.Seq(0); err == nil && after < last; {
		var ms []events.UseMessage
		ms, err = d.log.ReadUses(t.Context(), after, 100)
		for _, m := range ms {
			after = m.Seq
			b, err := events.DecodeUses(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			if b.Node == node {
				list = append(list, b)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}
