// Command keytrail is the one binary of Keytrail: the roles of a deployment,
// the operator's commands, and the checks. `keytrail --help` lists them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/keytrail/keytrail/audit/engine"
)

func main() {
	engine.ChildMain() // does not return in the local ClickHouse engine's own process
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
