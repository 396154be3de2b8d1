package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/cmd/internal/regimes"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/files"
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
	out, err io.Writer // what is written there can be seen (visible)
	raw      io.Writer // standard output for bytes that must arrive as they are

	url     string
	keyFile string
	keyFrom named
	json    bool
	level   string

	secrets redaction // of the log
}

// usageError is a mistake in the command line.
type usageError struct{ error }

// errDenied ends `keytrail verify` of a denied key without another message.
var errDenied = errors.New("denied")

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	told := &output{w: out}
	a := &app{in: in, out: &visible{w: told}, raw: told, err: &visible{w: errw}}
	errw = a.err
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(a.out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = told.lost()
	}
	var usage usageError
	var p *client.Problem
	var faults regimes.Faults
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDenied):
		return exitDenied
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"): // the latter is cobra's own
		fmt.Fprintf(errw, "keytrail: %s\n", withoutArguments(err.Error(), root, args, true))
		return exitUsage
	case errors.As(err, &p):
		printProblem(errw, p)
		if errors.As(err, &faults) {
			fmt.Fprintln(errw, faults)
		}
	case errors.As(err, &faults): // as compilers write them: editors follow FILE:LINE:COLUMN
		fmt.Fprintln(errw, faults)
	default:
		text := withoutArguments(err.Error(), root, args, false)
		if errors.Is(err, client.ErrUnreached) {
			text += "; start it with `keytrail up`, or name it with --url or KEYTRAIL_URL"
		}
		fmt.Fprintf(errw, "keytrail: %s\n", text)
	}
	return exitFailed
}

// printProblem writes an error answer with every bad field on its own line.
func printProblem(w io.Writer, p *client.Problem) {
	fmt.Fprintf(w, "keytrail: %s (%d %s", line(p.Detail), p.Status, line(p.Code))
	if p.RequestID != "" {
		fmt.Fprintf(w, ", %s", line(p.RequestID))
	}
	fmt.Fprintln(w, ")")
	for _, f := range p.Errors {
		fmt.Fprintf(w, "  %s: %s\n", line(f.Field), line(f.Message))
	}
	if what := changedMeanwhile(p); what != "" {
		fmt.Fprintf(w, "  %s\n", what)
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
	root.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		if err := errors.Join(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
			return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
		}
		if err := noPassword(c); err != nil {
			return err
		}
		if err := filledIn(c, args); err != nil {
			return err
		}
		if _, err := a.logLevel(0); err != nil { // also where nothing is logged: it was given
			return err
		}
		switch {
		case c.Flags().Changed("key-file"):
			a.keyFrom = byFlag
		case os.Getenv("KEYTRAIL_KEY_FILE") != "":
			a.keyFrom = byEnvironment
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
			err = badValue(bad)
		}
		return usageError{fmt.Errorf("%w; see '%s --help'", err, c.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.url, "url", env("KEYTRAIL_URL", "http://127.0.0.1:7070"), "Keytrail's address (KEYTRAIL_URL)")
	f.StringVar(&a.keyFile, "key-file", env("KEYTRAIL_KEY_FILE", "keytrail-data/root.key"), "file that holds the operator key (KEYTRAIL_KEY_FILE); goes before KEYTRAIL_ROOT_KEY")
	f.BoolVar(&a.json, "json", false, "print JSON instead of a table: {\"data\": …}, and for a list next_cursor; with --all that is the whole list")
	f.StringVar(&a.level, "log-level", os.Getenv("KEYTRAIL_LOG_LEVEL"), "debug, info, warn or error (KEYTRAIL_LOG_LEVEL; default: warn for up, info for roles)")
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "operate", Title: "Operate:"}, &cobra.Group{ID: "check", Title: "Check:"})
	add := func(group string, cs ...*cobra.Command) {
		for _, c := range cs {
			c.GroupID = group
			if c.HasSubCommands() && c.RunE == nil {
				c.RunE = subcommand
			}
			root.AddCommand(c)
		}
	}
	add("run", a.upCmd(), a.logCmd(), a.initCmd(), a.controlCmd(), a.verifierCmd(), a.auditorCmd())
	add("operate", a.keyspaceCmd(), a.keyCmd(), a.roleCmd(), a.tenantCmd(), a.verifyCmd(), a.nodesCmd(), a.receiptCmd(), a.auditCmd())
	add("check", a.doctorCmd(), a.benchCmd())
	strictHelp(root)
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

// named says who named a file.
type named int

const (
	byDefault named = iota
	byEnvironment
	byFlag
)

// client returns a client of the base URL that the named variable overrides
// (KEYTRAIL_AUDIT_URL and KEYTRAIL_VERIFY_URL, where roles are separate).
func (a *app) client(override string) (*client.Client, error) {
	c := &client.Client{Base: env(override, a.url), UserAgent: "keytrail-cli"}
	key := os.Getenv("KEYTRAIL_ROOT_KEY")
	if key == "" || a.keyFrom == byFlag { // who names a key must not act as another
		var err error
		if key, err = files.ReadSecret(a.keyFile); err != nil && (a.keyFrom != byDefault || !errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("read the operator key: %w", err)
		}
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) { // no header may hold it
		return nil, fmt.Errorf("the operator key of %s holds white space or other characters that no key has: want one key and nothing else", a.keySource(key))
	}
	c.Key = events.NewSecret(key)
	return c, nil
}

// keySource says where the operator key came from.
func (a *app) keySource(key string) string {
	if a.keyFrom != byFlag && key == os.Getenv("KEYTRAIL_ROOT_KEY") {
		return "KEYTRAIL_ROOT_KEY"
	}
	return a.keyFile
}

// logLevel returns the level that was asked for, or def.
func (a *app) logLevel(def slog.Level) (slog.Level, error) {
	if a.level == "" {
		return def, nil
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(a.level)); err != nil {
		return def, usageError{fmt.Errorf("--log-level %s: want debug, info, warn or error", input.Echo(a.level))}
	}
	return l, nil
}

// logger returns the logger of a role: JSON lines on standard error. It is the
// default too, for what is given none: the endpoints report a 500 through it.
func (a *app) logger(l slog.Level) (*slog.Logger, error) {
	l, err := a.logLevel(l)
	if err != nil {
		return nil, err
	}
	logger := slog.New(slog.NewJSONHandler(a.err, &slog.HandlerOptions{Level: l, ReplaceAttr: a.secrets.replace}))
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

// subcommand is what a group of commands does by itself: it shows its help, or
// refuses what is none of its commands.
func subcommand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command %s; see '%s --help'", input.Echo(args[0]), c.CommandPath())}
	}
	return c.Help()
}

// strictHelp makes `keytrail help` refuse what is no command, as all others do:
// cobra's own repeats it, whatever it is, and succeeds.
func strictHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	show := help.Run
	help.Run, help.RunE = nil, func(c *cobra.Command, args []string) error {
		if of, rest, err := root.Find(args); err != nil || of.HasSubCommands() && len(rest) > 0 {
			return usageError{fmt.Errorf("unknown command %s; see 'keytrail --help'", input.Echo(strings.Join(args, " ")))}
		}
		show(c, args)
		return nil
	}
}

// filledIn refuses what the command line or the environment gives in an empty
// form: --allow "$CIDR" with an unset variable must not open a key to every
// address, and an empty KEYTRAIL_ROOT_KEY must not become another key. What is to
// be lifted or taken away is said by a flag of its own. Only text for people may be
// empty.
func filledIn(c *cobra.Command, args []string) error {
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "KEYTRAIL_") && blank(value) {
			return usageError{fmt.Errorf("the environment variable %s is empty: give it a value, or unset it", name)}
		}
	}
	for i, arg := range args {
		if blank(arg) {
			return usageError{fmt.Errorf("argument %d is empty; see '%s --help'", i+1, c.CommandPath())}
		}
	}
	var err error
	c.Flags().Visit(func(f *pflag.Flag) {
		if fault := unfilled(c.Flags(), f); fault != "" && err == nil {
			err = usageError{fmt.Errorf("--%s %s", f.Name, fault)}
		}
	})
	return err
}

// unfilled says why the flag is refused, "" when it says something.
func unfilled(flags *pflag.FlagSet, f *pflag.Flag) string {
	const empty = "is empty: give it a value, or leave it out"
	if list, ok := f.Value.(pflag.SliceValue); ok {
		if len(list.GetSlice()) == 0 {
			return empty
		}
		if slices.ContainsFunc(list.GetSlice(), blank) {
			return "has an empty element: want values separated by single commas"
		}
		return ""
	}
	switch f.Value.Type() {
	case "string":
		if blank(f.Value.String()) && f.Name != "reason" && f.Name != "description" {
			return empty
		}
	case "stringToString":
		pairs, _ := flags.GetStringToString(f.Name)
		if len(pairs) == 0 {
			return empty
		}
		if slices.ContainsFunc(slices.Collect(maps.Keys(pairs)), blank) {
			return "has a value without a name: want name=value"
		}
	case "int", "int64", "uint32", "duration":
		if v := f.Value.String(); v == "0" || v == "0s" || v[0] == '-' {
			return "wants at least 1"
		}
	}
	return ""
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// none refuses arguments.
func none(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %s; see '%s --help'", input.Echo(args[0]), c.CommandPath())}
	}
	return nil
}
