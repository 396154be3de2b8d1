package main

import (
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// What is over within progressAfter shows no progress; then it is drawn every progressEvery.
const (
	progressAfter = time.Second
	progressEvery = 200 * time.Millisecond
)

// progress shows on the terminal how far work is, once it has taken a second: at says
// how much of total is done, in any unit, and is called from another goroutine. end stops
// it and clears the line. On a pipe or in a file it prints nothing.
func (a *app) progress(what string, total int64, at func() int64) (end func()) {
	if total < 1 || !terminal(a.err) {
		return func() {}
	}
	bar := progressbar.NewOptions64(total, progressbar.OptionSetDescription(what), progressbar.OptionSetWriter(a.err),
		progressbar.OptionSetWidth(30), progressbar.OptionSetElapsedTime(false), progressbar.OptionSetPredictTime(false))
	stop := make(chan struct{})
	var drawn sync.WaitGroup
	drawn.Go(func() {
		for wait := progressAfter; ; wait = progressEvery {
			select {
			case <-stop:
				bar.Clear()
				return
			case <-time.After(wait):
				bar.Set64(min(at(), total-1)) // a full bar ends its line
			}
		}
	})
	return func() {
		close(stop)
		drawn.Wait()
	}
}
