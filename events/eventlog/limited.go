package eventlog

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Limited tells, until ctx ends, which nodes met which limits of the log's servers. A
// server tells once a second; what is told while nobody listens is lost. It returns
// ctx's error, or why it cannot listen.
func (l *Log) Limited(ctx context.Context, tell func(streams.Limit)) error {
	told := make(chan *nats.Msg, 1024)
	sub, err := l.nc.ChanSubscribe(streams.Limited, told)
	if err != nil {
		return fmt.Errorf("listen for limits: %w", err)
	}
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-told:
			var met streams.Limit
			if json.Unmarshal(m.Data, &met) == nil && met.Node.Validate() == nil {
				tell(met)
			}
		}
	}
}
