package engine

import (
	"errors"
	"log/slog"
)

// WithPorts makes Start take its ports from pick.
func WithPorts(cfg Config, pick func() (int, error)) Config {
	cfg.freePort = pick
	return cfg
}

// WithSpareQueries leaves the quota of `default` n queries after the start.
func WithSpareQueries(cfg Config, n int) Config {
	cfg.spareQueries = n
	return cfg
}

// BootFailure is what is known of a starting engine that has said so much on stderr:
// nil while it may still open its ports.
func BootFailure(said string) error {
	p := &process{tail: &tail{log: slog.New(slog.DiscardHandler), secret: "a secret"}, done: make(chan struct{})}
	if _, err := p.tail.Write([]byte(said)); err != nil {
		return err
	}
	if !p.bootFailed() {
		return nil
	}
	return p.cause()
}

// IsPortInUse reports whether the next start should take other ports.
func IsPortInUse(err error) bool { return errors.Is(err, errPortInUse) }

// FreePort is freePort.
var FreePort = freePort

// CheckVersion is checkVersion.
var CheckVersion = checkVersion

// MinMemoryLimit is minMemoryLimit.
const MinMemoryLimit = minMemoryLimit
