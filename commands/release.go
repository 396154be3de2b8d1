package commands

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
)

// releaseEvery is how often control looks whether every process has been upgraded.
const releaseEvery = time.Second

// RunRelease raises the release of the floor once every process that runs has a newer
// one, up to Config.WriteRelease, until ctx ends, and returns its error. From then on
// the writers use the newer versions of events, and an older process is granted no
// lease: it ends before it meets an event that it cannot read.
func (h *Handler) RunRelease(ctx context.Context) error {
	said := ""
	for h.cfg.Log.Readers().Before(h.cfg.WriteRelease) {
		sight, err := h.cfg.Nodes.Look(ctx, 0)
		if err == nil {
			var older []string
			r := h.cfg.WriteRelease
			if r, older = readers(&sight, r); h.cfg.Log.Readers().Before(r) {
				if err = h.cfg.Leases.RaiseRelease(ctx, r); err == nil {
					h.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "every process has the release: events of it are written from now on", slog.String("release", string(r)))
				}
			}
			if waits := strings.Join(older, ", "); waits != said && waits != "" {
				said = waits
				h.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "events of the newest release are not written until these nodes have it", slog.String("nodes", waits), slog.String("release", string(h.cfg.WriteRelease)))
			}
		}
		pause(ctx, releaseEvery)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// readers returns the release that every run which may answer has at least, most at
// the most, and which nodes have an older one than most. Of a node whose record is
// unreadable nothing is known.
func readers(s *receipts.Sight, most events.Release) (least events.Release, older []string) {
	least = most
	for i := range s.Runs {
		r := &s.Runs[i]
		if (r.State == receipts.Live || r.State == receipts.Unreadable) && r.Release.Before(most) {
			older = append(older, string(r.Node))
			if r.Release.Before(least) {
				least = r.Release
			}
		}
	}
	return least, slices.Compact(older)
}
