package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/internal/files"
	"github.com/keytrail/keytrail/projections/checkpoint"
)

// checkpointKeyFile is the name of the file that `up` keeps its checkpoint keys in.
const checkpointKeyFile = "checkpoint.key"

// checkpointFlags say with which keys control signs checkpoints.
type checkpointFlags struct {
	file    string
	replace bool
}

func (f *checkpointFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.file, "checkpoint-key", os.Getenv("KEYTRAIL_CHECKPOINT_KEY"),
		"file of the keys that sign checkpoints, made by 'keytrail log key' (KEYTRAIL_CHECKPOINT_KEY; default: none, this control serves what others sign)")
	f.registerReplace(c)
}

func (f *checkpointFlags) registerReplace(c *cobra.Command) {
	c.Flags().BoolVar(&f.replace, "replace-checkpoint-key", false, "sign with new checkpoint keys what was signed with others before")
}

// signer reads the key file that the user named; nil = none is named.
func (f *checkpointFlags) signer(id events.LogID) (*tree.Signer, error) {
	if f.file == "" {
		return nil, nil
	}
	text, err := files.ReadSecret(f.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usageError{fmt.Errorf("--checkpoint-key: %s is missing: make it with 'keytrail log key %s', or copy it from another control", f.file, f.file)}
	}
	if err == nil {
		var s *tree.Signer
		if s, err = tree.NewSigner(tree.Origin(id.String()), []byte(text)); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("--checkpoint-key: %w", err)
}

// ownCheckpointKey makes the key file of a data directory, if it has none.
func ownCheckpointKey(path string) error {
	text, err := files.ReadOwn(path)
	if err == nil && text == "" {
		err = files.Write(path, tree.GenerateKeyFile())
	}
	if err != nil {
		return fmt.Errorf("the checkpoint key: %w", err)
	}
	return nil
}

// checkpoints adds the tree of the log in dir, its checkpoints, and their endpoints.
func (n *node) checkpoints(dir string, f *checkpointFlags) error {
	if dir == "" {
		if f.file != "" {
			return usageError{errors.New("--checkpoint-key: signing needs the tree of the log, which is kept in --dir: name a directory")}
		}
		n.logger.Warn("no checkpoint is signed or served: the tree of the log is kept in --dir, and there is none")
		return nil
	}
	signer, err := f.signer(n.log.ID())
	if err != nil {
		return err
	}
	p, err := checkpoint.New(checkpoint.Config{Dir: dir, Log: n.log, View: n.keys, Checkpoints: n.log.Checkpoints(), Signer: signer, Replace: f.replace, Logger: n.logger})
	if err != nil {
		return fmt.Errorf("the tree of the log: %w", err)
	}
	if n.signer = signer; signer != nil {
		n.logger.Info("checkpoints are signed", "keys", signer.VKeys())
	}
	p.Routes(n.server.Mux, n.verifier)
	n.server.Registry.MustRegister(p.Collectors()...)
	n.server.Warn("checkpoints", p.Ready)
	n.group.Go("checkpoints", p.Run)
	return nil
}

// logKeyCmd makes a key file.
func (a *app) logKeyCmd() *cobra.Command {
	var id string
	c := &cobra.Command{Use: "key FILE", Short: "Make the key file with which control signs checkpoints", Args: exactly("FILE"),
		Long: `Draw the two keys with which control signs checkpoints of the log (Ed25519 and
ML-DSA-44), and keep them in FILE, mode 0600. Give every control the same file with
--checkpoint-key, and keep a copy where a backup of the log is not: who has both can
sign another history. A file that is there is not changed.

With --log-id it prints the two public keys, for those who verify.`,
		Example: "  keytrail log key checkpoint.key\n  keytrail control --dir keytrail-control --checkpoint-key checkpoint.key",
		RunE: func(c *cobra.Command, args []string) error {
			f := checkpointFlags{file: args[0]}
			var log events.LogID
			var err error
			if id != "" {
				if log, err = events.ParseLogID(id); err != nil {
					return usageError{fmt.Errorf("--log-id: %w", err)}
				}
			}
			if err := ownCheckpointKey(f.file); err != nil {
				return err
			}
			s, err := f.signer(log)
			if err != nil {
				return err
			}
			if id == "" {
				fmt.Fprintf(a.out, "checkpoint keys: in %s, mode 0600\n", f.file)
				return nil
			}
			for _, k := range s.VKeys() {
				fmt.Fprintln(a.out, k)
			}
			return nil
		}}
	c.Flags().StringVar(&id, "log-id", "", "print the public keys for the log with this id")
	return c
}

// logCheckpointCmd shows the newest checkpoint.
func (a *app) logCheckpointCmd() *cobra.Command {
	var keys []string
	c := &cobra.Command{Use: "checkpoint", Short: "Print and verify the newest signed checkpoint of the log", Args: none,
		Long: `Print the newest signed checkpoint of the log, as control serves it, after both
signatures were verified: with the public keys given by --vkey twice, which you should
have from a party that you trust, or else with those that control names itself.`,
		RunE: func(c *cobra.Command, _ []string) error {
			text, v, err := a.checkpoint(c, keys)
			if err != nil {
				return err
			}
			cp, err := v.Open(text)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"data": map[string]any{"origin": cp.Origin, "size": cp.Size, "root": cp.Root.String(), "time": cp.Time, "checkpoint": string(text)}})
			}
			fmt.Fprintf(a.out, "%s", text)
			return nil
		}}
	c.Flags().StringArrayVar(&keys, "vkey", nil, "public key that must have signed; give it twice, for Ed25519 and ML-DSA-44")
	return c
}

// checkpoint fetches the newest checkpoint, and the verifier of the keys.
func (a *app) checkpoint(c *cobra.Command, keys []string) ([]byte, *tree.Verifier, error) {
	client, err := a.client("")
	if err != nil {
		return nil, nil, err
	}
	if len(keys) == 0 {
		if keys, err = servedKeys(c.Context(), client); err != nil {
			return nil, nil, err
		}
		if len(keys) == 0 {
			return nil, nil, fmt.Errorf("%s does not sign, so it names no public keys: give those of the control that does with --vkey", client.Base)
		}
	}
	v, err := tree.NewVerifier(keys...)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--vkey: %w", err)}
	}
	text, err := servedCheckpoint(c.Context(), client)
	return text, v, err
}

// servedKeys returns the public keys that control names; none if it does not sign.
func servedKeys(ctx context.Context, c *client.Client) ([]string, error) {
	var ans struct {
		Data checkpoint.KeysView `json:"data"`
	}
	err := c.Do(ctx, http.MethodGet, "/v1/log/keys", nil, nil, nil, &ans)
	return ans.Data.Keys, err
}

// maxCheckpointText bounds what is read of a checkpoint, in bytes.
const maxCheckpointText = 128 << 10

func servedCheckpoint(ctx context.Context, c *client.Client) ([]byte, error) {
	resp, err := c.Send(ctx, http.MethodGet, "/v1/log/checkpoint", nil, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxCheckpointText))
}

// checkpoints says what is signed of the log, and with which keys.
func (d *doctor) checkpoints(ctx context.Context, c *client.Client) {
	keys, err := servedKeys(ctx, c)
	p := new(client.Problem)
	switch {
	case errors.As(err, &p) && p.Status == http.StatusNotFound:
		d.note("checkpoints", "this control keeps no tree of the log: it has no --dir")
		return
	case errors.As(err, &p):
		d.note("checkpoints", "not asked: "+p.Detail)
		return
	case err != nil:
		d.note("checkpoints", "not asked: "+err.Error())
		return
	}
	text, err := servedCheckpoint(ctx, c)
	if err != nil {
		d.note("checkpoints", "none: "+err.Error())
		return
	}
	head, err := tree.ReadHead(text)
	if err != nil {
		d.fail("checkpoints", err, "is this Keytrail? correct --url or KEYTRAIL_URL")
		return
	}
	if len(keys) == 0 {
		d.note("checkpoints", fmt.Sprintf("the newest has %d events; this control does not sign", head.Size))
		return
	}
	v, err := tree.NewVerifier(keys...)
	var cp tree.Checkpoint
	if err == nil {
		cp, err = v.Open(text)
	}
	if err != nil {
		d.fail("checkpoints", fmt.Errorf("the newest, of %d events, is not signed by the keys of this control: %w", head.Size, err), partAdvice["checkpoints"])
		return
	}
	d.ok("checkpoints", fmt.Sprintf("the newest has %d events, signed %s", cp.Size, cp.Time.Format(time.RFC3339)))
	for _, k := range keys {
		d.ok("checkpoint key", k)
	}
}
