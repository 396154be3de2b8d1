package commands

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

type metrics struct {
	commands *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	imported *prometheus.CounterVec
	receipts *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keytrail_commands_total",
			Help: "Commands by name and outcome. A rise of unavailable or unknown means that the log does not answer; of error, a defect.",
		}, []string{"command", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "keytrail_command_seconds",
			Help:    "Time from the decoded request to the durable answer, by command.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"command"}),
		imported: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keytrail_imported_keys_total",
			Help: "Keys of answered imports by what became of them. A rise of refused means that an import meets keys which break the keyspace's rules or are known already.",
		}, []string{"status"}),
		receipts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keytrail_receipts_total",
			Help: "Receipts by outcome. incomplete: a node had not said that it holds the change, and its lease was not over; not_made: the nodes' leases could not be read.",
		}, []string{"outcome"}),
	}
}

// Collectors returns the handler's metrics; the caller registers them.
func (h *Handler) Collectors() []prometheus.Collector {
	return []prometheus.Collector{h.metrics.commands, h.metrics.seconds, h.metrics.imported, h.metrics.receipts}
}

// outcomeOf names how a command ended, from a closed set.
func outcomeOf(replayed bool, err error) string {
	_, refused := errors.AsType[*Refusal](err)
	_, invalid := errors.AsType[input.FieldErrors](err)
	switch {
	case err == nil && replayed:
		return "replayed"
	case err == nil:
		return "ok"
	case refused:
		return "refused"
	case invalid:
		return "invalid"
	case errors.Is(err, events.ErrConflict):
		return "conflict"
	case errors.Is(err, events.ErrUnknownOutcome):
		return "unknown"
	case errors.Is(err, events.ErrUnavailable), errors.Is(err, events.ErrFull):
		return "unavailable"
	}
	return "error"
}

// observe counts a command and writes its one line, when deferred with what it
// came to.
func (h *Handler) observe(ctx context.Context, call *Call, command string, start time.Time, done *Done, err *error) {
	took := h.cfg.Now().Sub(start)
	outcome := outcomeOf(done.Replayed, *err)
	h.metrics.commands.WithLabelValues(command, outcome).Inc()
	h.metrics.seconds.WithLabelValues(command).Observe(took.Seconds())
	level, attrs := slog.LevelInfo, []slog.Attr{
		slog.String("command", command),
		slog.String("outcome", outcome),
		slog.String("actor", call.Principal.Actor.ID),
		slog.String("request_id", call.Principal.RequestID),
		slog.Duration("took", took),
	}
	if done.Key.Exists() {
		attrs = append(attrs, slog.String("key_id", done.Key.ID.String()), slog.String("tenant", string(done.Key.Tenant)))
	}
	if *err != nil {
		if outcome == "unknown" || outcome == "unavailable" || outcome == "error" {
			level = slog.LevelWarn // ours to mend; a refusal is the caller's
		}
		attrs = append(attrs, slog.Any("err", *err))
	} else {
		attrs = append(attrs, slog.Uint64("seq", uint64(done.Seq)))
	}
	h.cfg.Logger.LogAttrs(ctx, level, "command", attrs...)
}
