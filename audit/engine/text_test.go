package engine_test

import (
	"errors"
	"testing"

	"github.com/keytrail/keytrail/audit/engine"
)

func TestRedact(t *testing.T) {
	for dsn, want := range map[string]string{
		"clickhouse://u:secret@h:9000/db":                        "clickhouse://u:xxxxx@h:9000/db",
		"clickhouse://u:se@cr/e:t@h1:9000,h2:9000/db?x=1":        "clickhouse://u:xxxxx@h1:9000,h2:9000/db?x=1",
		"http://h:8123/db?username=u&password=secret&x=1":        "http://h:8123/db?username=u&password=xxxxx&x=1",
		"clickhouse://h/db?access_token=secret":                  "clickhouse://h/db?access_token=xxxxx",
		"clickhouse://u@h/db":                                    "clickhouse://u@h/db",
		"clickhouse://127.0.0.1:9000":                            "clickhouse://127.0.0.1:9000",
		"parse \"clickhouse://u:secret@h:x/\": invalid port":     "parse \"clickhouse://u:xxxxx@h:x/\": invalid port",
		"dial clickhouse://u:%zz@h/: invalid URL escape \"%zz\"": "dial clickhouse://u:xxxxx@h/: invalid URL escape \"%zz\"",
		"": "",
	} {
		if got := engine.Redact(dsn); got != want {
			t.Errorf("Redact(%s) = %s, want %s", dsn, got, want)
		}
	}
}

// The engine says that it failed in one line and why in the next, and either may be
// read before the other is written. Only with both is it known that other ports help.
func TestBootFailureIsReadWhole(t *testing.T) {
	const said = "Received exception:\nCode: 210. DB::Exception: Listen [127.0.0.1]:20001 failed: Poco::Exception. Code: 1000, e.code() = 98, " +
		"Net Exception: Address already in use: 127.0.0.1:20001 (version 26.7.2.1). (NETWORK_ERROR)\n"
	for n := range len(said) {
		if err := engine.BootFailure(said[:n]); err != nil {
			t.Fatalf("after %q: %v", said[:n], err)
		}
	}
	if err := engine.BootFailure(said); !engine.IsPortInUse(err) {
		t.Errorf("%v, want one that asks for other ports", err)
	}
}

func TestVersion(t *testing.T) {
	for version, ok := range map[string]bool{
		"26.6.1.1": true, "26.7.2.1": true, "26.10": true, "27.1.1": true,
		"26.5.3.1": false, "25.12.1": false, "18.16.1": false, "": false, "26": false, "new.er": false,
	} {
		err := engine.CheckVersion(version)
		if (err == nil) != ok || err != nil && !errors.Is(err, engine.ErrVersion) {
			t.Errorf("version %q: %v", version, err)
		}
	}
}
