package main

import (
	"fmt"
	"io"
	"sync"
)

// output is standard output. It keeps the first error, so that a command whose
// answer did not arrive whole fails, whoever printed it: a key's secret is shown
// once.
type output struct {
	w io.Writer

	mu  sync.Mutex
	err error // guarded by mu
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// lost returns why not all of the output was written, nil if it was.
func (o *output) lost() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		return nil
	}
	return fmt.Errorf("the output is not whole: %w; what was done is done, and on the record", o.err)
}
