package logtest

import (
	"time"

	"go.uber.org/goleak"
)

// Tests are what a TestMain runs: a *testing.M.
type Tests interface{ Run() int }

// Settled returns tests for goleak.VerifyTestMain that wait at their end, for up to a
// minute, until no goroutine is left. goleak alone waits less than half a second; on a
// busy machine a goroutine that is about to end may need longer.
func Settled(tests Tests) Tests { return settled{tests} }

type settled struct{ tests Tests }

func (s settled) Run() int {
	code := s.tests.Run()
	for end := time.Now().Add(time.Minute); code == 0 && goleak.Find() != nil && time.Now().Before(end); {
		// Find waits.
	}
	return code
}
