package logtest

import (
	"os"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
)

// ReadMessage reads a message as a golden file shows it: its document byte for byte,
// or, where it is no JSON, as text.
func ReadMessage(t testing.TB, path string) events.Message {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var g struct {
		Subject  string         `json:"subject"`
		Document jsontext.Value `json:"document"`
		Text     string         `json:"text"`
		Hash     string         `json:"hash"`
	}
	if err := json.Unmarshal(b, &g, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	m := events.Message{Subject: g.Subject, Data: g.Document}
	if m.Data == nil {
		m.Data = []byte(g.Text)
	}
	return m
}
