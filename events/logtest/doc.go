// Package logtest is the harness of the logs: an in-memory log with faults on
// demand, the contracts of events/log.go and events/use.go as executable lists,
// a checker of whole logs, and generators of random histories.
//
// It is for tests only and imports nothing of Keytrail but events. It works
// inside testing/synctest bubbles: MemLog starts no goroutine and waits on
// channels and timers only.
//
//	memlog.go   MemLog: the lifecycle log
//	memuses.go  MemLog: the stream of uses, the timers
//	memleases.go  MemLog: the log of leases
//	faults.go   what a test can make go wrong, in pairs: nothing stored, or stored without an answer
//	build.go    short ways to write an event
//	suite.go    TestLog, TestUses, TestTimers, TestLeases: one case per sentence of the contracts
//	check.go    CheckLog, CheckNoSecrets: run them after each step
//	gen.go      GenEvent, GenHistory: random but legal
package logtest
