package main

import (
	"fmt"

	"github.com/spf13/pflag"
)

// badValue says what a flag takes, without repeating what was given: that may be a
// secret in the wrong place.
func badValue(e *pflag.InvalidValueError) error {
	want := ""
	switch e.GetFlag().Value.Type() {
	case "int", "int64", "uint32", "uint64":
		want = "want an integer without fraction or exponent, as 60"
	case "duration":
		want = "want a duration, as 90s or 24h"
	case "bool":
		want = "want true or false, or the flag alone for true"
	case "stringToString":
		want = "want name=value"
	case "stringSlice", "stringArray":
		want = "want values separated by commas"
	default:
		want = "the value has the wrong form"
	}
	return fmt.Errorf("--%s: %s", e.GetFlag().Name, want)
}
