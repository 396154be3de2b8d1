package eventlog

import (
	"bytes"
	"cmp"
	"os"
	"regexp"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// envContainers set to 1 makes the contract suites run on NATS in containers,
// with the configuration of deploy/nats, in place of the embedded server.
const envContainers = "KEYTRAIL_TEST_CONTAINERS"

// natsImage is what docker-compose.yml runs; NATS_IMAGE overrides both.
const natsImage = "nats:2.15.2"

// clusterBlock is what a single server must not have: with it JetStream would
// wait for the other members.
var clusterBlock = regexp.MustCompile(`(?ms)^cluster \{.*?^\}\n`)

// contractLog is a fresh log for the contract suites: on the embedded server, or
// in a container.
func contractLog(t testing.TB) *Log {
	t.Helper()
	if os.Getenv(envContainers) != "1" {
		return newLog(t)
	}
	url, login := natsContainer(t)
	admin, err := dial.Connect(url, login("admin"))
	if err != nil {
		t.Fatal(err)
	}
	defer closed(admin)
	if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	ctrl, err := dial.Connect(url, login("ctrl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(ctrl) })
	return openLog(t, ctrl, Options{})
}

// natsContainer starts a container that ends with the test. A machine without a
// Docker engine fails the test: it was asked for.
func natsContainer(t testing.TB) (url string, login func(user string) dial.Login) {
	t.Helper()
	conf, err := os.ReadFile("../../deploy/nats/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(clusterBlock.FindAll(conf, -1)); n != 1 {
		t.Fatalf("deploy/nats/nats.conf has %d cluster blocks", n)
	}
	password := func(user string) string { return "pw-of-" + user }
	c, err := testcontainers.Run(t.Context(), cmp.Or(os.Getenv("NATS_IMAGE"), natsImage),
		testcontainers.WithExposedPorts("4222/tcp"),
		testcontainers.WithCmd("--config", "/nats.conf"),
		testcontainers.WithFiles(testcontainers.ContainerFile{
			Reader: bytes.NewReader(clusterBlock.ReplaceAll(conf, nil)), ContainerFilePath: "/nats.conf", FileMode: 0o444,
		}, testcontainers.ContainerFile{HostFilePath: "../../deploy/nats/nodes.conf", ContainerFilePath: "/nodes.conf", FileMode: 0o444}),
		testcontainers.WithEnv(map[string]string{
			"NATS_NAME": "keytrail", "NATS_MAX_STORE": "256MB",
			"KEYTRAIL_ADMIN_PASSWORD": password("admin"), "KEYTRAIL_CTRL_PASSWORD": password("ctrl"),
			"KEYTRAIL_VERIFIER_1_PASSWORD": password("verifier-1"), "KEYTRAIL_VERIFIER_2_PASSWORD": password("verifier-2"),
			"KEYTRAIL_SYS_PASSWORD": password("sys"),
		}),
		testcontainers.WithWaitStrategy(wait.ForLog("Server is ready")),
	)
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatalf("start NATS in a container, as %s=1 asks: %v", envContainers, err)
	}
	url, err = c.PortEndpoint(t.Context(), "4222/tcp", "nats")
	if err != nil {
		t.Fatal(err)
	}
	return url, func(user string) dial.Login {
		return dial.Login{User: user, Password: dial.Password(password(user)), Name: t.Name()}
	}
}
