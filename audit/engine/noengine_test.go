//go:build noengine || !linux || !(amd64 || arm64)

package engine_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/audit/engine"
)

func TestNoEngine(t *testing.T) {
	engine.ChildMain()
	_, startErr := engine.Start(t.Context(), engine.Config{Dir: t.TempDir()})
	_, ensureErr := engine.Ensure(t.Context(), engine.Config{})
	_, locateErr := engine.Locate(engine.Config{})
	for _, err := range []error{startErr, ensureErr, locateErr} {
		if !errors.Is(err, engine.ErrNoEngine) || !strings.Contains(err.Error(), "KEYTRAIL_CLICKHOUSE") {
			t.Errorf("%v, want ErrNoEngine that names KEYTRAIL_CLICKHOUSE", err)
		}
	}
}
