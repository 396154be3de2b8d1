package input_test

import (
	"testing"

	"github.com/keytrail/keytrail/events/input"
)

func TestFieldErrors(t *testing.T) {
	var f, inner input.FieldErrors
	inner.Add("", "required", "want one")
	inner.Add("plan", "invalid", "want a name")
	f.Merge("limit", inner)
	if got, want := f.Error(), "limit: want one; limit.plan: want a name"; got != want || f.OrNil() == nil {
		t.Errorf("%q, want %q", got, want)
	}
}
