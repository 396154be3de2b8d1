package events_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// cloudMessage lets the official SDK read our messages by the rules of the NATS
// binding in structured mode: the header says which format the document has.
type cloudMessage struct{ m events.Message }

func (cloudMessage) ReadEncoding() binding.Encoding { return binding.EncodingStructured }

func (c cloudMessage) ReadStructured(ctx context.Context, w binding.StructuredWriter) error {
	return w.SetStructuredEvent(ctx, format.Lookup(events.ContentType), strings.NewReader(string(c.m.Data)))
}

func (cloudMessage) ReadBinary(context.Context, binding.BinaryWriter) error {
	return binding.ErrNotBinary
}

func (cloudMessage) Finish(error) error { return nil }

// The official CloudEvents SDK reads every type of the catalogue and finds it
// valid, with every attribute where it belongs.
func TestCloudEventsSDKReadsUs(t *testing.T) {
	for _, w := range logtest.Samples() {
		e := &w.Event
		m := must(events.Encode(e))
		ce, err := binding.ToEvent(t.Context(), cloudMessage{m})
		if err != nil {
			t.Errorf("%s: %v", e.Type(), err)
			continue
		}
		if err := ce.Validate(); err != nil {
			t.Errorf("%s is no valid CloudEvent: %v", e.Type(), err)
		}
		var document struct{ Data json.RawMessage }
		if err := json.Unmarshal(m.Data, &document); err != nil {
			t.Fatal(err)
		}
		want := map[string][2]any{
			"specversion": {ce.SpecVersion(), "1.0"},
			"id":          {ce.ID(), e.ID.String()},
			"type":        {ce.Type(), "keytrail." + string(e.Type()) + ".v1"},
			"source":      {ce.Source(), e.Source},
			"subject":     {ce.Subject(), e.Aggregate.String()},
			"time":        {events.At(ce.Time()).String(), e.Time.String()},
			"data":        {string(ce.Data()), string(document.Data)},
		}
		extensions := map[string]any{"rev": int32(e.Rev)}
		if e.Rev > 1 {
			extensions["prev"] = e.Prev.String()
		}
		if e.Command != "" {
			extensions["cmd"] = e.Command
		}
		for name, v := range extensions {
			want["extension "+name] = [2]any{ce.Extensions()[name], v}
		}
		for name, v := range want {
			if v[0] != v[1] {
				t.Errorf("%s: the SDK reads %s as %#v, want %#v", e.Type(), name, v[0], v[1])
			}
		}
		if len(ce.Extensions()) != len(extensions) {
			t.Errorf("%s: the SDK sees extensions %v, want %v", e.Type(), ce.Extensions(), extensions)
		}
	}
}
