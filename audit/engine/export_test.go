package engine

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

// CheckVersion is checkVersion.
var CheckVersion = checkVersion

// MinMemoryLimit is minMemoryLimit.
const MinMemoryLimit = minMemoryLimit
