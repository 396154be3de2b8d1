// Command keytrail is the one binary of Keytrail: the roles of a deployment,
// the operator's commands, and the checks. `keytrail --help` lists them.
package main

import (
	"context"
	"os"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/cmd/internal/ops"
)

func main() {
	engine.ChildMain() // does not return in the local ClickHouse engine's own process
	ctx := ops.Interrupted(context.Background(), os.Stderr)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
