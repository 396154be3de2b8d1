package enginetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// EnvContainers set to 1 makes the shared server one in a container. A machine
// without a Docker engine then fails the tests: it was asked for.
const EnvContainers = "KEYTRAIL_TEST_CONTAINERS"

// image is what docker-compose.yml runs; CLICKHOUSE_IMAGE overrides both.
const image = "clickhouse/clickhouse-server:26.7"

// startContainer starts the shared server in a container. Main ends it; if the
// test process is killed, testcontainers' reaper does, where it may run.
func startContainer() error {
	const user, database = "keytrail", "keytrail"
	password := rand.Text()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := testcontainers.Run(ctx, cmp.Or(os.Getenv("CLICKHOUSE_IMAGE"), image),
		testcontainers.WithExposedPorts("9000/tcp", "8123/tcp"),
		testcontainers.WithEnv(map[string]string{
			"CLICKHOUSE_USER": user, "CLICKHOUSE_PASSWORD": password, "CLICKHOUSE_DB": database,
			"CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT": "1",
		}),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/ping").WithPort("8123/tcp")),
	)
	if err != nil {
		return errors.Join(fmt.Errorf("in a container, as %s=1 asks: %w", EnvContainers, err), testcontainers.TerminateContainer(c))
	}
	host, err := c.PortEndpoint(ctx, "9000/tcp", "")
	if err != nil {
		return errors.Join(err, testcontainers.TerminateContainer(c))
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.box = c
	shared.dsn = (&url.URL{Scheme: "clickhouse", User: url.UserPassword(user, password), Host: host, Path: "/" + database}).String()
	return nil
}
