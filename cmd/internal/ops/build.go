package ops

import (
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Version returns the version that the binary was built as: the release given
// at link time, else the module's version or commit.
func Version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}

// release is set with -ldflags "-X …/cmd/internal/ops.release=v1.2.3".
var release string

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keytrail_build_info", Help: "Always 1; the label names the release.",
		ConstLabels: prometheus.Labels{"version": Version()},
	}, func() float64 { return 1 })
}
