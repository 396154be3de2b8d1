package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// TestUnmadeStreams: a process that was killed while it made a stream starts again. A
// stream that holds messages and lost its description is not thrown away.
func TestUnmadeStreams(t *testing.T) {
	c := Config{Dir: t.TempDir()}
	s := start(t, c)
	nc, err := s.ConnectAdmin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), nc, InitConfig{MaxStore: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	s.Stop()
	of := func(stream string) string {
		found, err := filepath.Glob(filepath.Join(c.Dir, "jetstream", "*", "streams", stream))
		if err != nil || len(found) != 1 {
			t.Fatal(stream, found, err)
		}
		return found[0]
	}
	unmade := of(streams.Read)
	for _, name := range []string{"meta.sum", "meta.inf"} {
		if err := os.Remove(filepath.Join(unmade, name)); err != nil {
			t.Fatal(err)
		}
		s = start(t, c)
		if err := s.Ready(); err != nil {
			t.Error(err)
		}
		s.Stop()
		if _, err := os.Stat(unmade); !os.IsNotExist(err) {
			t.Error("what a kill left is still there")
		}
		if err := os.MkdirAll(filepath.Join(unmade, "msgs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if name == "meta.sum" { // now the other one alone
			if err := os.WriteFile(filepath.Join(unmade, "meta.inf"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(unmade, "msgs", "1.blk"), []byte("a message"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeUnmade(c.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(unmade, "msgs", "1.blk")); err != nil {
		t.Error(err)
	}
}
