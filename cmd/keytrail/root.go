package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keytrail/keytrail/cmd/internal/client"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/cmd/internal/regimes"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// The exit codes: 1 for a refusal or a failure, 2 for a mistake in the command
// line, 3 when verify denied the key.
const (
	exitFailed = 1
	exitUsage  = 2
	exitDenied = 3
)

// app is what every subcommand shares.
type app struct {
	in       io.Reader
	out, err io.Writer

	url     string
	keyFile string
	json    bool
	level   string
}

// usageError is a mistake in the command line.
type usageError struct{ error }

// errDenied ends `keytrail verify` of a denied key without another message.
var errDenied = errors.New("denied")

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	a := &app{in: in, out: out, err: errw}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	var usage usageError
	var p *api.Problem
	var faults regimes.Faults
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDenied):
		return exitDenied
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"): // the latter is cobra's own
		fmt.Fprintf(errw, "keytrail: %v\n", err)
		return exitUsage
	case errors.As(err, &p):
		printProblem(errw, p)
		if errors.As(err, &faults) {
			fmt.Fprintln(errw, faults)
		}
	case errors.As(err, &faults): // as compilers write them: editors follow FILE:LINE:COLUMN
		fmt.Fprintln(errw, faults)
	default:
		fmt.Fprintf(errw, "keytrail: %v\n", err)
	}
	return exitFailed
}

// printProblem writes an error answer with every bad field on its own line.
func printProblem(w io.Writer, p *api.Problem) {
	fmt.Fprintf(w, "keytrail: %s (%d %s", p.Detail, p.Status, p.Code)
	if p.RequestID != "" {
		fmt.Fprintf(w, ", %s", p.RequestID)
	}
	fmt.Fprintln(w, ")")
	for _, f := range p.Errors {
		fmt.Fprintf(w, "  %s: %s\n", f.Field, f.Message)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keytrail",
		Short: "API keys whose whole life is on the record",
		Long: `Keytrail issues, verifies and audits API keys. Every step of a key's life is an
event in a log; verifiers answer from memory what the log adds up to, and every
use, allowed or denied, is kept for the auditor.

Start here:
  keytrail up                                      run everything on this machine
  keytrail keyspace apply -f my-product.yaml       say how your keys look and what they may do
  keytrail key create --keyspace … --tenant … --name …
  keytrail verify --keyspace … --scope read        answer from memory, in microseconds
  keytrail audit uses --key key_…                  who used it, from where, and what was refused`,
		Version:       ops.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if err := errors.Join(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
			return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
		}
		return notEmpty(c)
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.url, "url", env("KEYTRAIL_URL", "http://127.0.0.1:7070"), "Keytrail's address (KEYTRAIL_URL)")
	f.StringVar(&a.keyFile, "key-file", env("KEYTRAIL_KEY_FILE", "keytrail-data/root.key"), "file that holds the operator key, if KEYTRAIL_ROOT_KEY is not set")
	f.BoolVar(&a.json, "json", false, "print JSON for machines instead of a table")
	f.StringVar(&a.level, "log-level", os.Getenv("KEYTRAIL_LOG_LEVEL"), "debug, info, warn or error (KEYTRAIL_LOG_LEVEL; default: warn for up, info for roles)")
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "operate", Title: "Operate:"}, &cobra.Group{ID: "check", Title: "Check:"})
	add := func(group string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = group
			if c.HasSubCommands() {
				c.RunE = subcommand
			}
			root.AddCommand(c)
		}
	}
	add("run", a.upCmd(), a.logCmd(), a.initCmd(), a.controlCmd(), a.verifierCmd(), a.auditorCmd())
	add("operate", a.keyspaceCmd(), a.keyCmd(), a.roleCmd(), a.tenantCmd(), a.verifyCmd(), a.auditCmd())
	add("check", a.doctorCmd(), a.benchCmd())
	return root
}

// env returns the environment variable's value, or def when it is not set.
func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

// hush keeps what a flag took from the environment out of --help: an address may
// hold a password.
func hush(f *pflag.FlagSet, name, def string) { f.Lookup(name).DefValue = def }

// client returns a client of the base URL that the named variable overrides
// (KEYTRAIL_AUDIT_URL and KEYTRAIL_VERIFY_URL, where roles are separate).
func (a *app) client(override string) (*client.Client, error) {
	c := &client.Client{Base: env(override, a.url)}
	key := os.Getenv("KEYTRAIL_ROOT_KEY")
	if key == "" {
		b, err := os.ReadFile(a.keyFile)
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("read the operator key: %w", err)
		}
		key = strings.TrimSpace(string(b))
	}
	c.Key = events.NewSecret(key)
	return c, nil
}

// logger returns the logger of a role: JSON lines on standard error. It is the
// default too, for what is given none: the doors report a 500 through it.
func (a *app) logger(l slog.Level) (*slog.Logger, error) {
	if a.level == "" {
		// the role's own default
	} else if err := l.UnmarshalText([]byte(a.level)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", a.level)}
	}
	logger := slog.New(slog.NewJSONHandler(a.err, &slog.HandlerOptions{Level: l}))
	slog.SetDefault(logger)
	return logger, nil
}

// exactly is cobra.ExactArgs with a sentence that names what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("want %s; see '%s --help'", strings.Join(names, " "), c.CommandPath())}
		}
		return nil
	}
}

// atMost is cobra.MaximumNArgs(1) as a mistake in the command line.
func atMost(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{fmt.Errorf("want %s at most; see '%s --help'", name, c.CommandPath())}
		}
		return nil
	}
}

// subcommand is what a group of commands does by itself: it shows its help, or
// refuses what is none of its commands.
func subcommand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %q; see '%s --help'", args[0], c.CommandPath())}
	}
	return c.Help()
}

// notEmpty refuses a flag that is given but says nothing: --allow "$CIDR" with an
// unset variable must not open a key to every address. Scopes and roles may be
// none, a text may be empty, and a first page has no cursor.
func notEmpty(c *cobra.Command) error {
	var err error
	c.Flags().Visit(func(f *pflag.Flag) {
		if slices.Contains([]string{"reason", "description", "cursor"}, f.Name) {
			return
		}
		empty := f.Value.Type() == "string" && f.Value.String() == ""
		if list, ok := f.Value.(pflag.SliceValue); ok && f.Name != "scope" && f.Name != "role" {
			empty = len(list.GetSlice()) == 0
		}
		if empty && err == nil {
			err = usageError{fmt.Errorf("--%s is empty: give it a value, or leave it out", f.Name)}
		}
	})
	return err
}

// none refuses arguments.
func none(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q; see '%s --help'", args[0], c.CommandPath())}
	}
	return nil
}
