package embed

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/projections/snapshots"
	"github.com/keytrail/keytrail/verifier"
)

// Config says which log a verifier follows, and who it is. Name is required, and either
// URL and Password, or Log.
type Config struct {
	// URL is where the log's NATS servers are, separated by commas, as
	// tls://nats-1:4222,tls://nats-2:4222.
	URL string
	// Name is the verifier's name in the ledger, and its user on the servers, which
	// `keytrail log credential` makes with its password. It belongs to one running
	// process at a time: a second one does not start.
	Name     events.NodeID
	Password dial.Password
	CAFile   string // PEM of the authority that signed the servers' certificates; "" = the system's
	CertFile string // PEM of a client certificate, with KeyFile; "" = none
	KeyFile  string

	LogID events.LogID // refuse any other log than this; zero = any

	// Dir is a directory for snapshots of the view, of this verifier alone: it starts
	// from the last one and the events after it. "" keeps none: the whole log is read at
	// each start.
	Dir string
	// Sources are nodes that may have a snapshot where Dir has none.
	Sources []snapshots.Source

	// StaleCeiling is verifier.NodeConfig.StaleCeiling: 1 s to verifier.MaxStaleCeiling,
	// default verifier.DefaultStaleCeiling.
	StaleCeiling time.Duration
	// TrustedProxies is verifier.NodeConfig.TrustedProxies. Default none: the client is
	// the peer of the connection.
	TrustedProxies []netip.Prefix
	TakeOver       bool // do not ask whether another process holds the name: fence it

	Logger *slog.Logger // default slog.Default(); what it is given holds no secret

	// Log is an open log, instead of URL, Password, LogID and the files. The caller
	// closes its connection, after the verifier has stopped.
	Log *eventlog.Log
	// Views are restored views of Log, instead of Dir and Sources.
	Views *snapshots.Views
	// Followers follow the log in the same pass.
	Followers []events.Follower
}

// check returns every fault of c at once.
func (c *Config) check() error {
	var f input.FieldErrors
	if err := c.Name.Validate(); err != nil {
		f.Add("Name", "invalid", err.Error())
	}
	if (c.URL == "") == (c.Log == nil) {
		f.Add("URL", "invalid", "want the addresses of the log's NATS servers, or Log, and not both")
	}
	if c.Views != nil && (c.Log == nil || c.Dir != "" || len(c.Sources) > 0) {
		f.Add("Views", "invalid", "want them with Log, and without Dir and Sources")
	}
	if len(c.Sources) > 0 && c.Dir == "" {
		f.Add("Sources", "invalid", "want Dir too, where the snapshot is kept")
	}
	if c.StaleCeiling != 0 && (c.StaleCeiling < time.Second || c.StaleCeiling > verifier.MaxStaleCeiling) {
		f.Add("StaleCeiling", "invalid", "want 1s to 1h")
	}
	return f.OrNil()
}
