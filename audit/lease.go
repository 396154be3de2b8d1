package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"golang.org/x/sync/errgroup"
)

// A lease is a query that never ends. The server admits a query id once at a
// time (code 216 otherwise), and ends the query when its connection is gone: so
// the holder of the id is alone, and a holder that dies lets go within
// leaseEvery. It needs no table, no clock and no Keeper. (A row with an expiry was
// rejected: plain MergeTree has no compare-and-set.)
const (
	leaseEvery = 100 * time.Millisecond // between two rows of the query
	leaseQuiet = 10 * time.Second       // without a row for this long the lease is lost
	leaseMin   = 50 * time.Millisecond  // before the first look whether it is free,
	leaseMax   = 500 * time.Millisecond // and between two looks at most
	// The first row comes at once: it says that the id was admitted.
	leaseSQL = "SELECT if(number = 0, 0, sleepEachRow(0.1)) AS row FROM numbers(1000000000000) SETTINGS max_block_size = 1, max_threads = 1, " +
		"short_circuit_function_evaluation = 'force_enable', max_execution_time = 0, max_rows_to_read = 0, max_result_rows = 0, " +
		"replace_running_query = 0" // a second holder waits, whatever the user's profile says
)

func (s *Store) queryPrefix(shard string) string { return "keytrail:" + s.database + "." + shard + ":" }

// dial opens a connection of its own: ch-go does not reconnect, so what runs on
// it after an error fails instead of landing late (A3).
func (s *Store) dial(ctx context.Context, readTimeout time.Duration) (*ch.Client, error) {
	c, err := ch.Dial(ctx, ch.Options{
		Address: s.options.Addr[0], Database: s.database,
		User: s.options.Auth.Username, Password: s.options.Auth.Password,
		TLS: s.options.TLS, DialTimeout: s.options.DialTimeout, HandshakeTimeout: s.options.DialTimeout,
		ReadTimeout: readTimeout, ClientName: "keytrail-audit",
	})
	return c, s.fault(ctx, "connect to ClickHouse", err)
}

// withLease runs f while this process alone holds the shard's lease, waiting for
// it first. f's context ends when the lease is lost.
func (s *Store) withLease(ctx context.Context, shard string, f func(context.Context) error) error {
	g, gctx := errgroup.WithContext(ctx)
	hctx, release := context.WithCancel(gctx)
	defer release()
	held := make(chan struct{})
	g.Go(func() error {
		err := s.hold(hctx, shard, sync.OnceFunc(func() { close(held) }))
		if hctx.Err() != nil && gctx.Err() == nil {
			return nil // released
		}
		return err
	})
	g.Go(func() error {
		defer release()
		select {
		case <-held:
			return f(gctx)
		case <-gctx.Done():
			return context.Cause(gctx)
		}
	})
	return g.Wait()
}

// hold takes the lease, says so once, and returns when it is lost or ctx ends.
func (s *Store) hold(ctx context.Context, shard string, held func()) error {
	waiting := false
	for {
		err := s.holdOnce(ctx, shard, held)
		if code(err) != codeQueryRuns {
			return err
		}
		if !waiting {
			s.logger.InfoContext(ctx, "another process writes to the audit copy; waiting for it to end", "shard", shard, "store", s)
			waiting = true
		}
		if err := s.awaitFree(ctx, shard); err != nil {
			return err
		}
	}
}

// awaitFree returns when nobody holds the lease. It looks over the pool, whose
// connections stay: a try to take the lease costs a connection each time.
func (s *Store) awaitFree(ctx context.Context, shard string) error {
	for wait := leaseMin; ; wait = min(2*wait, leaseMax) {
		if err := s.pause(ctx, wait); err != nil {
			return err
		}
		var held uint64
		err := s.conn.QueryRow(ctx, "SELECT count() FROM system.processes WHERE query_id = {lease:String}", named("lease", s.queryPrefix(shard)+"lease")).Scan(&held)
		if err != nil {
			return s.fault(ctx, "wait for the lease of "+shard, err)
		}
		if held == 0 {
			return nil
		}
	}
}

func (s *Store) holdOnce(ctx context.Context, shard string, held func()) error {
	c, err := s.dial(ctx, leaseQuiet)
	if err != nil {
		return err
	}
	var row proto.ColUInt8
	err = c.Do(ctx, ch.Query{
		Body:    leaseSQL,
		QueryID: s.queryPrefix(shard) + "lease",
		Result:  proto.Results{{Name: "row", Data: &row}},
		OnResult: func(context.Context, proto.Block) error {
			if row.Rows() > 0 {
				held()
			}
			return nil
		},
	})
	if err == nil {
		err = errors.New("the lease's query ended")
	}
	if !c.IsClosed() {
		err = errors.Join(err, c.Close())
	}
	return s.fault(ctx, fmt.Sprintf("hold the lease of %s", shard), err)
}

// fence waits until no query of an earlier holder of the shard runs (A4). One
// look is not enough: a dead writer's last insert may still lie unread in the
// server's socket, before it is a query. fenceLooks in a row must find nothing.
func (s *Store) fence(ctx context.Context, shard string) error {
	const fenceLooks = 3
	prefix := s.queryPrefix(shard)
	for quiet := 0; quiet < fenceLooks; {
		var n uint64
		err := s.conn.QueryRow(ctx, "SELECT count() FROM system.processes WHERE startsWith(query_id, {prefix:String}) AND query_id != {lease:String}",
			named("prefix", prefix), named("lease", prefix+"lease")).Scan(&n)
		if err != nil {
			return s.fault(ctx, "wait for the inserts of an earlier writer", err)
		}
		if n > 0 {
			quiet = 0
		} else {
			quiet++
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// pause waits d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
