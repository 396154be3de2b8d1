package snapshots

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/projections"
)

// How long, and how often, the floor is asked for until it has come to a snapshot: a
// busy log's floor follows its end in milliseconds.
const (
	floorLimit = 5 * time.Second
	floorEvery = 50 * time.Millisecond
)

// inLog returns an error unless the head of a loaded view lies in the log (S1).
func (s *Store) inLog(ctx context.Context, v View) error {
	past, last := v.Past()
	at := events.Seq(past.Size())
	if at == 0 {
		return errors.New("it holds no event")
	}
	floor, err := s.floorAt(ctx, at)
	if err != nil {
		return err
	}
	var other error
	err = s.cfg.Log.Leaves(ctx, at, floor.Size, math.MaxInt, func(seq events.Seq, subject string, document events.Hash) error {
		if seq > at {
			past.Append(tree.LeafHash(subject, document))
		} else if document != last {
			other = fmt.Errorf("it is of another history: it ends with an event %d of hash %.16s, and that of the log has %.16s", at, last, document)
		}
		return other
	})
	if err != nil {
		return err
	}
	if root := events.Hash(past.Root()); root != floor.Root {
		return fmt.Errorf("it is of another history: with the events after it, its tree has the root %.16s over %d events, and the floor that control has raised has %.16s", root, floor.Size, floor.Root)
	}
	return nil
}

// floorAt returns a floor with a root, at the sequence or after it.
func (s *Store) floorAt(ctx context.Context, at events.Seq) (floor events.Floor, err error) {
	ctx, cancel := context.WithTimeout(ctx, floorLimit)
	defer cancel()
	tick := time.NewTicker(floorEvery)
	defer tick.Stop()
	for {
		if floor, err = s.cfg.Log.Floor(ctx); err == nil && floor.Size >= at && !floor.Root.IsZero() {
			return floor, nil
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		if err != nil {
			return floor, err
		}
		return floor, fmt.Errorf("it ends with event %d, and the newest floor is at %d: the log has not acknowledged so much", at, floor.Size)
	}
}

// Run proves the rows of what was fetched (S2), if anything was, and then waits for ctx's
// end. It returns ctx's error, or a *events.CorruptError that names the source of a
// snapshot that does not say what the log says, or says that the log was altered.
func (s *Store) Run(ctx context.Context) error {
	if err := s.prove(ctx); err != nil {
		return err
	}
	close(s.done)
	<-ctx.Done()
	return ctx.Err()
}

func (s *Store) prove(ctx context.Context) error {
	if len(s.unproven) == 0 {
		return nil
	}
	for _, v := range s.views {
		if err := v.Wait(ctx, 1); err != nil { // what answers comes first
			return err
		}
	}
	list := s.unproven
	twins := make([]View, len(list))
	last := events.Seq(0)
	for i, f := range list {
		twins[i] = kinds[f.view]()
		last = max(last, f.seq)
		s.cfg.Logger.InfoContext(ctx, "a fetched snapshot is compared with the log in the background", "view", f.view, "seq", uint64(f.seq), "from", f.from, "rate", s.cfg.Rate)
	}
	said := time.Now()
	err := s.cfg.Log.Replay(ctx, 1, last, s.cfg.Rate, func(batch []events.Recorded) error {
		for i, twin := range twins {
			n := min(len(batch), int(list[i].seq+1-min(list[i].seq+1, batch[0].Seq)))
			if n == 0 {
				continue
			}
			if err := twin.Apply(batch[:n]); err != nil {
				return err
			}
		}
		at := batch[len(batch)-1].Seq
		s.position.Store(uint64(at))
		if time.Since(said) >= progress {
			said = time.Now()
			s.cfg.Logger.InfoContext(ctx, "a fetched snapshot is being compared with the log", "done", uint64(at), "of", uint64(last))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, f := range list {
		if err := s.compare(f, twins[i]); err != nil {
			return err
		}
		s.cfg.Logger.InfoContext(ctx, "the snapshot that was fetched says what the log says", "view", f.view, "seq", uint64(f.seq), "from", f.from)
		if err := s.forget(f.view); err != nil {
			return fmt.Errorf("note that a snapshot is proven: %w", err)
		}
	}
	return nil
}

// compare returns an error unless the view, which was folded from the log, has the
// snapshot that was fetched.
func (s *Store) compare(f fetched, twin View) error {
	past, _ := twin.Past()
	if root := events.Hash(past.Root()); root != f.root {
		return &events.CorruptError{Seq: f.seq, Reason: fmt.Sprintf("the log was altered while this node ran: the tree over its first %d events has the root %.16s now, and had %.16s. "+
			"Restore the log from its archive mirror or a backup, do not continue on this copy", f.seq, root, f.root)}
	}
	sum := sha256.New()
	if _, err := twin.Export(sum, s.cfg.Log.ID()); err != nil {
		return err
	}
	if events.Hash(sum.Sum(nil)) == f.sum {
		return nil
	}
	example := ""
	mine := s.views[f.view]
	if mine != nil {
		if d := projections.Difference(mine, twin); d != "" {
			example = ": " + d
		}
	}
	wrong := &events.CorruptError{Seq: f.seq, Reason: fmt.Sprintf("the snapshot of the %s at event %d that came from %s does not say what the log says%s. "+
		"Nothing is answered from it any more. Find out why that node has it: it may answer wrongly itself. Start this node again: it removes its snapshots and reads the log", f.view, f.seq, f.from, example)}
	if mine != nil {
		mine.Refuse(wrong)
	}
	if err := write(s.cfg.Dir, refusedFile, s.cfg.Log.ID(), append(s.refused, f)); err != nil {
		return errors.Join(wrong, err)
	}
	return wrong
}
