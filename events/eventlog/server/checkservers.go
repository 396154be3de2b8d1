package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// CheckServers asks the servers themselves, as user sys, whether each
// acknowledges only what is fsynced (L1); want is how many there should be.
func CheckServers(ctx context.Context, sys *nats.Conn, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	inbox := sys.NewInbox()
	sub, err := sys.SubscribeSync(inbox)
	if err != nil {
		return fmt.Errorf("ask the servers: %w", err)
	}
	defer sub.Unsubscribe()
	if err := sys.PublishRequest("$SYS.REQ.SERVER.PING.JSZ", inbox, nil); err != nil {
		return fmt.Errorf("ask the servers: %w", err)
	}
	var lax, seen []string
	for len(seen) < want {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d servers say how they sync (%s); the others cannot be reached", len(seen), want, strings.Join(seen, ", "))
		}
		var a struct {
			Server struct{ Name string } `json:"server"`
			Data   struct {
				Config struct {
					SyncAlways bool `json:"sync_always"`
				} `json:"config"`
			} `json:"data"`
		}
		if err := json.Unmarshal(m.Data, &a); err != nil {
			return fmt.Errorf("ask the servers: %w", err)
		}
		seen = append(seen, a.Server.Name)
		if !a.Data.Config.SyncAlways {
			lax = append(lax, a.Server.Name)
		}
	}
	if len(lax) > 0 {
		slices.Sort(lax)
		return fmt.Errorf("server %s acknowledges before it has fsynced, and a power loss would take acknowledged events: "+
			"set jetstream { sync_interval: always } in its configuration and restart it", strings.Join(lax, ", "))
	}
	return nil
}
