package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"text/tabwriter"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/eventlog/raw"
	"github.com/keytrail/keytrail/events/tree"
)

func (a *app) logVerifyCmd() *cobra.Command {
	var from logSource
	var checkpoint, against string
	var keys []string
	c := &cobra.Command{Use: "verify [FILE]", Short: "Check a backup, or the log itself, event by event", Args: cobra.MaximumNArgs(1),
		Long: `Check a backup FILE, or without one the log of a server or of a data directory:
every event decodes, every history is a chain of hashes, no sequence is missing, and
the Merkle root is that of the backup's manifest and of a signed checkpoint, as far
as they are given. The exit code is 1 if anything is wrong, and the first sequence
that is wrong is named.

An event that was rewritten together with all that follows in its history is shown
by the root alone, which does not name it. Another backup, older or newer, does:
  keytrail log verify --against older.backup newer.backup

Give a checkpoint that you kept elsewhere, with both public keys
of its log:
  keytrail log verify --checkpoint checkpoint.txt --key keytrail/log/…+… --key keytrail/log/…+… keytrail.backup`,
		RunE: func(c *cobra.Command, args []string) error {
			ev, err := evidence(checkpoint, keys)
			if err != nil {
				return err
			}
			if against != "" {
				f, err := os.Open(against)
				if err != nil {
					return err
				}
				defer f.Close()
				if ev.Other, err = backup.NewReader(f); err != nil {
					return fmt.Errorf("--against: %w", err)
				}
			}
			if len(args) == 1 {
				if c.Flags().Changed("dir") || c.Flags().Changed("nats") {
					return usageError{errors.New("want a FILE, --dir or --nats, and not two of them")}
				}
				report, err := a.verifyFile(args[0], ev)
				return errors.Join(a.printReport(&report, err, args[0]), err)
			}
			logger, err := a.logger(slog.LevelWarn)
			if err != nil {
				return err
			}
			if err := from.hasLog(); err != nil {
				return err
			}
			nc, own, err := from.connect(c.Context(), "keytrail log verify", logger)
			if err != nil {
				return err
			}
			defer own.close()
			defer nc.Close()
			log, err := raw.Describe(c.Context(), nc)
			if err != nil {
				return err
			}
			report, err := a.verifyLog(c.Context(), nc, &log, ev)
			return errors.Join(a.printReport(&report, err, ""), err)
		}}
	from.register(c, "ctrl")
	c.Flags().StringVar(&checkpoint, "checkpoint", "", "file with a signed checkpoint (C2SP tlog-checkpoint) of the log, or of the log that it was restored from; needs --key")
	c.Flags().StringArrayVar(&keys, "key", nil, "public key of the checkpoint's log (a signed-note verifier key); once for Ed25519 and once for ML-DSA-44")
	c.Flags().StringVar(&against, "against", "", "another backup of the log, older or newer: what both hold must be the same, byte for byte")
	c.MarkFlagsRequiredTogether("checkpoint", "key")
	return c
}

// evidence reads a checkpoint and verifies its signatures.
func evidence(path string, keys []string) (ev backup.Evidence, err error) {
	if path == "" {
		return ev, nil
	}
	v, err := tree.NewVerifier(keys...)
	if err != nil {
		return ev, usageError{fmt.Errorf("--key: %w", err)}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return ev, err
	}
	cp, err := v.Open(b)
	if err != nil {
		return ev, fmt.Errorf("%s: %w", path, err)
	}
	return backup.Evidence{Checkpoint: &cp}, nil
}

// verifyFile checks a backup.
func (a *app) verifyFile(path string, ev backup.Evidence) (report backup.Report, err error) {
	f, err := os.Open(path)
	if err != nil {
		return report, err
	}
	defer f.Close()
	return backup.Verify(f, ev)
}

// verifyLog checks the log that nc reaches, as far as log says.
func (a *app) verifyLog(ctx context.Context, nc *nats.Conn, log *raw.Log, ev backup.Evidence) (backup.Report, error) {
	ev.Live = true
	v, err := backup.NewVerification(log.ID, log.Restored, ev)
	if err != nil {
		return v.Report(), err
	}
	m := a.meter("verify", total(log.Streams))
	defer m.end()
	for _, e := range log.Streams {
		first, err := raw.Each(ctx, nc, e, func(msg *backup.Message) error {
			m.add()
			return v.Take(msg)
		})
		if err != nil {
			r := v.Report()
			return r, err
		}
		v.Begin(e.Stream, first)
	}
	return v.Done()
}

// printReport prints what was checked, and on what evidence. fault, if not nil, is
// what was found.
func (a *app) printReport(r *backup.Report, fault error, file string) error {
	if a.json {
		type result struct {
			*backup.Report
			File     string        `json:"file,omitempty"`
			OK       bool          `json:"ok"`
			Fault    *backup.Fault `json:"fault,omitempty"`
			Unproven string        `json:"unproven,omitempty"`
		}
		out := result{Report: r, File: file, OK: fault == nil, Unproven: r.Unproven()}
		if f, ok := errors.AsType[*backup.Fault](fault); ok {
			out.Fault = f
		} else if fault != nil {
			out.Fault = &backup.Fault{Reason: fault.Error()}
		}
		return a.printJSON(map[string]any{"data": out})
	}
	if fault != nil {
		return nil // it is the command's error
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "log\t%s\n", r.Log)
	for i := range r.Streams {
		s := &r.Streams[i]
		fmt.Fprintf(w, "%s\t%d to %d, %d messages\troot %s\n", s.Stream, s.First, s.Last, s.Messages(), s.Root)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range r.Streams {
		if s := &r.Streams[i]; s.Unreadable > 0 {
			fmt.Fprintf(a.out, "note: %d messages of %s cannot be read, the first is %d: a verifier wrote them so, and the auditor sets them aside\n", s.Unreadable, s.Stream, s.FirstBad)
		}
	}
	if r.Compared > 0 {
		fmt.Fprintf(a.out, "%d messages are byte for byte those of the other backup\n", r.Compared)
	}
	if text := r.Unproven(); text != "" {
		fmt.Fprintln(a.out, "note:", text)
	}
	_, err := fmt.Fprintln(a.out, "ok")
	return err
}
