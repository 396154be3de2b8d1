//go:build noengine || !linux || !(amd64 || arm64)

package engine

import (
	"os"
	"runtime"
	"syscall"
)

// unsupported is why this build has no engine. Start, Locate and Ensure return
// it before anything else below is reached.
const unsupported = "this build of Keytrail (" + runtime.GOOS + "/" + runtime.GOARCH + ") carries no local ClickHouse engine: " +
	"set KEYTRAIL_CLICKHOUSE to the DSN of a ClickHouse server"

const self = ""

// ChildMain returns at once: this build has no engine to become.
func ChildMain() {}

func openPTY() (master, slave *os.File, err error) { return nil, nil, ErrNoEngine }

func childAttr() *syscall.SysProcAttr { return nil }
