//go:build race || seam

// Package seam lets a test stop code between two of its steps. Only programs built with
// the race detector, or with -tags seam, have seams: in all others At is nothing.
package seam

import "sync/atomic"

var hook atomic.Pointer[func()]

// At is a seam, where a test may come between.
func At() {
	if f := hook.Load(); f != nil {
		(*f)()
	}
}

// Set has f called at each seam that any goroutine comes to, nil for nothing.
func Set(f func()) {
	if f == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&f)
}
