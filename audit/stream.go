package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/keytrail/keytrail/internal/api"
)

// recheckEvery is how often a stream asks whether its caller may still read: a key
// that is revoked reads for so long at the most after the node has applied that.
const recheckEvery = time.Second

// whileAllowed runs stream, which writes to out, and cuts it off when allowed returns
// an error. The error is then that one.
func whileAllowed(ctx context.Context, allowed func() error, out *patientWriter, stream func(context.Context) (Manifest, error)) (Manifest, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		tick := time.NewTicker(recheckEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := allowed(); err != nil {
				cancel(err)
				out.cutOff(err)
				return
			}
		}
	})
	m, err := stream(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return m, err
}

// whyBroken says for the record why an export broke off; "" when it did not.
func whyBroken(err error) string {
	var problem *api.Problem
	switch {
	case err == nil:
		return ""
	case errors.As(err, &problem):
		return api.Plain("broken off: "+problem.Detail, 500)
	case errors.Is(err, errSlow):
		return "broken off: the reader took too long"
	case errors.Is(err, ErrUnavailable):
		return "broken off: the copy of the record could not be read"
	}
	return "broken off: the reader's connection was lost, or the process stopped"
}

// patientWriter lets an export run past the server's write timeout for as long as
// its reader takes bytes at exportRate. Time in which nothing is written does not
// count against the reader.
type patientWriter struct {
	w        io.Writer
	deadline func(time.Time) error
	now      func() time.Time

	written int64
	waited  time.Duration // in writes

	mu  sync.Mutex
	cut error // why nothing more may be written; guarded by mu, as is the setting of a deadline
}

// errSlow is the end of an export whose reader keeps others from a slot.
var errSlow = errors.New("the reader took less than it must")

func (p *patientWriter) Write(b []byte) (int, error) {
	began := p.now()
	allowed := exportGrace + time.Duration(p.written+int64(len(b)))*time.Second/exportRate
	if p.waited > allowed {
		return 0, fmt.Errorf("%w: %d bytes in %v, want %d a second", errSlow, p.written, p.waited, exportRate)
	}
	if err := p.until(began.Add(allowed - p.waited)); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	p.written += int64(n)
	p.waited += p.now().Sub(began)
	return n, err
}

func (p *patientWriter) until(deadline time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut != nil {
		return p.cut
	}
	if err := p.deadline(deadline); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// cutOff ends the write that waits for the reader, and every later one.
func (p *patientWriter) cutOff(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = why
	_ = p.deadline(p.now()) // where there is none, the next write ends
}
