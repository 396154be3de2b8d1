package events_test

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// cloudMessage lets the official SDK read our messages by the rules of the NATS
// binding in binary mode: every header with the prefix is an attribute or an
// extension, the body is the data.
type cloudMessage struct{ m events.Message }

var natsSpecs = spec.WithPrefix("ce-")

func (c cloudMessage) version() spec.Version {
	return natsSpecs.Version(strings.Join(c.m.Header[natsSpecs.PrefixedSpecVersionName()], ","))
}

func (c cloudMessage) ReadEncoding() binding.Encoding {
	if c.version() == nil || format.IsFormat(strings.Join(c.m.Header["content-type"], ",")) {
		return binding.EncodingUnknown
	}
	return binding.EncodingBinary
}

func (cloudMessage) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (c cloudMessage) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	for name, values := range c.m.Header {
		short, ok := strings.CutPrefix(name, natsSpecs.Prefix())
		if !ok {
			continue
		}
		var err error
		if a := c.version().Attribute(name); a != nil {
			err = w.SetAttribute(a, values[0])
		} else {
			err = w.SetExtension(short, values[0])
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(bytes.NewReader(c.m.Data))
}

func (c cloudMessage) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	a := c.version().AttributeFromKind(kind)
	if a == nil || c.m.Header[a.PrefixedName()] == nil {
		return a, nil
	}
	return a, c.m.Header[a.PrefixedName()][0]
}

func (c cloudMessage) GetExtension(name string) any {
	if v := c.m.Header[natsSpecs.Prefix()+name]; v != nil {
		return v[0]
	}
	return nil
}

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
		want := map[string][2]string{
			"specversion":     {ce.SpecVersion(), "1.0"},
			"id":              {ce.ID(), e.ID.String()},
			"type":            {ce.Type(), "keytrail." + string(e.Type()) + ".v1"},
			"source":          {ce.Source(), e.Source},
			"subject":         {ce.Subject(), e.Aggregate.String()},
			"datacontenttype": {ce.DataContentType(), "application/json"},
			"time":            {events.At(ce.Time()).String(), e.Time.String()},
			"data":            {string(ce.Data()), string(m.Data)},
		}
		extensions := map[string]string{"rev": strconv.FormatUint(e.Rev, 10)}
		if e.Rev > 1 {
			extensions["prev"] = e.Prev.String()
		}
		if e.Command != "" {
			extensions["cmd"] = e.Command
		}
		for name, v := range extensions {
			got, _ := ce.Extensions()[name].(string)
			want["extension "+name] = [2]string{got, v}
		}
		for name, v := range want {
			if v[0] != v[1] {
				t.Errorf("%s: the SDK reads %s as %q, want %q", e.Type(), name, v[0], v[1])
			}
		}
		if len(ce.Extensions()) != len(extensions) {
			t.Errorf("%s: the SDK sees extensions %v, want %v", e.Type(), ce.Extensions(), extensions)
		}
		// It prints as JSON of the structured mode too: what a bridge would send on.
		if _, err := ce.MarshalJSON(); err != nil {
			t.Errorf("%s has no structured form: %v", e.Type(), err)
		}
	}
}
