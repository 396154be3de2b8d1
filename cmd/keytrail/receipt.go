package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/files"
)

// receiptView is a receipt as control shows it.
type receiptView struct {
	Complete bool        `json:"complete"`
	Signed   bool        `json:"signed"`
	Note     string      `json:"note"`
	Type     events.Type `json:"type"`
	Nodes    []nodeLine  `json:"nodes"`
}

// nodeLine is one run of a node on a receipt.
type nodeLine struct {
	Node     string          `json:"node"`
	Instance string          `json:"instance"`
	Status   receipts.Status `json:"status"`
	WaitMS   int64           `json:"wait_ms"`
}

// waitFlags are those of a command that can wait for its receipt.
type waitFlags struct {
	wait  bool
	until time.Time
	file  string
}

// The bounds of a wait. The default is longer than a verifier's default --stale-ceiling,
// after which one that is cut off has lapsed. One request waits for a part of it:
// proxies end those that take a minute.
const (
	waitDefault = 75 * time.Second
	waitMost    = 50 * time.Second
)

func addWait(c *cobra.Command) *cobra.Command {
	f := c.Flags()
	f.Bool("wait", false, "wait until no verifier answers as before the change, and show the receipt")
	f.Duration("wait-timeout", waitDefault, "with --wait: for how long; a verifier that is cut off is waited for as long as its --stale-ceiling")
	f.String("receipt", "", "with --wait: write the signed receipt to this file")
	return c
}

// readWait returns the flags, zero where the command has none.
func readWait(c *cobra.Command) (w waitFlags, err error) {
	f := c.Flags()
	if f.Lookup("wait") == nil {
		return w, nil
	}
	w.wait, _ = f.GetBool("wait")
	timeout, _ := f.GetDuration("wait-timeout")
	w.until = time.Now().Add(timeout)
	w.file, _ = f.GetString("receipt")
	switch {
	case !w.wait && (f.Changed("wait-timeout") || w.file != ""):
		return w, usageError{errors.New("--wait-timeout and --receipt are for --wait")}
	case timeout < time.Millisecond:
		return w, usageError{errors.New("--wait-timeout: want a millisecond or more, as 75s")}
	}
	return w, nil
}

// query asks for a wait of most at the longest.
func (w *waitFlags) query(most time.Duration) url.Values {
	if !w.wait {
		return url.Values{}
	}
	left := max(min(time.Until(w.until), most).Truncate(time.Millisecond), time.Millisecond)
	return url.Values{"wait": {"applied"}, "wait_timeout": {left.String()}}
}

// told shows an answer, and the receipt of the change once that is complete or the time
// to wait is over. What the answer says is shown first where people read it: it may hold
// a secret, and a wait can be broken off.
func (a *app) told(ctx context.Context, w waitFlags, ans *answer, show func() error) error {
	if !w.wait {
		return show()
	}
	if !a.json {
		if err := show(); err != nil {
			return err
		}
	}
	var said struct {
		Receipt jsontext.Value `json:"receipt"`
		URL     string         `json:"receipt_url"`
	}
	if len(ans.Rest) > 0 {
		if err := json.Unmarshal(ans.Rest, &said); err != nil {
			return fmt.Errorf("the answer is not what this command expects: %w", err)
		}
	}
	r, err := a.await(ctx, &w, ans, said.Receipt, said.URL)
	if a.json {
		if err := show(); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return a.showReceipt(r, said.URL, w.file)
}

// await asks at path until the receipt is complete or the time is over, and puts what
// came last beside the answer. first is the receipt that came with the answer.
func (a *app) await(ctx context.Context, w *waitFlags, ans *answer, first jsontext.Value, path string) (*receiptView, error) {
	if path == "" {
		return nil, errors.New("the answer has no receipt: control is of an older release")
	}
	for raw := first; ; {
		r := new(receiptView)
		if len(raw) > 0 && raw.Kind() != 'n' {
			if err := json.Unmarshal(raw, r); err != nil {
				return nil, fmt.Errorf("the answer is not what this command expects: %w", err)
			}
		}
		if r.Complete || r.Note != "" && time.Until(w.until) <= 0 {
			return r, beside(ans, "receipt", raw)
		}
		query := w.query(waitMost)
		if time.Until(w.until) < time.Second {
			query = nil // control takes a second of its own; a shorter wait may end before it has read the nodes
		}
		next, err := a.call(ctx, "", http.MethodGet, path, query, nil, nil)
		if err != nil && ctx.Err() == nil && time.Until(w.until) > askAgain && passes(err) {
			select {
			case <-time.After(askAgain):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the change is acknowledged, and whether it holds everywhere cannot be learned: %w", err)
		}
		raw = next.Data
	}
}

// askAgain is how long a wait pauses after control could not answer.
const askAgain = 500 * time.Millisecond

// passes reports whether control may answer soon: it has no proof of what it holds, as
// while the log changes its leader, or it was not reached. A receipt can be asked for
// again and again.
func passes(err error) bool {
	p := new(client.Problem)
	if errors.As(err, &p) {
		return p.Status == http.StatusServiceUnavailable || p.Status == http.StatusBadGateway || p.Status == http.StatusGatewayTimeout
	}
	var unreached *url.Error
	return errors.As(err, &unreached)
}

// beside puts a member beside the answer's data.
func beside(ans *answer, member string, v any) error {
	rest := map[string]jsontext.Value{}
	if len(ans.Rest) > 0 {
		if err := json.Unmarshal(ans.Rest, &rest); err != nil {
			return fmt.Errorf("the answer is not what this command expects: %w", err)
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	rest[member] = b
	ans.Rest, err = json.Marshal(rest, json.Deterministic(true))
	return err
}

// showReceipt shows a receipt. One that is not complete is an error: a script must not
// go on as if every verifier had applied the change.
func (a *app) showReceipt(r *receiptView, path, file string) error {
	if file != "" {
		if err := files.Write(file, []byte(r.Note)); err != nil {
			return fmt.Errorf("--receipt: %w", err)
		}
	}
	if !a.json {
		printNodes(a.out, r.Type, r.Nodes)
		if !r.Signed {
			fmt.Fprintln(a.err, "note: the receipt is not signed: control has no key for it")
		}
	}
	if !r.Complete {
		return fmt.Errorf("the change is acknowledged, and its receipt is not complete: some nodes may still answer as before; GET %s tells later", line(path))
	}
	return nil
}

// printNodes says on how many nodes the change holds, and names the others and those
// that are only known to have lapsed. A node counts once, by the run of it that says
// the least; a run that has ended is not mentioned where the node has another.
func printNodes(w io.Writer, change events.Type, nodes []nodeLine) {
	runs, waits := map[string]int{}, map[string]bool{}
	for _, n := range nodes {
		if n.Status != receipts.HasLapsed && n.Status != receipts.HasEnded {
			runs[n.Node]++
		}
		waits[n.Node] = waits[n.Node] || n.Status == receipts.Waiting
	}
	holds := 0
	for _, waits := range waits {
		if !waits {
			holds++
		}
	}
	holdsAs := "in force"
	switch change {
	case events.TypeKeyRevoked, events.TypeKeyDisabled, events.TypeKeyExpired:
		holdsAs = "refused"
	}
	fmt.Fprintf(w, "%s on %d of %d verifiers\n", holdsAs, holds, len(waits))
	told := map[string]bool{}
	for _, n := range nodes {
		switch {
		case n.Status == receipts.HasLapsed && runs[n.Node] == 0 && !told[n.Node]:
			told[n.Node] = true
			fmt.Fprintf(w, "  %s has lapsed: it was not heard of for the life of its lease, and answers no more\n", line(n.Node))
		case n.Status == receipts.Waiting:
			fmt.Fprintf(w, "  %s has not applied it; its lease has run out in %s at the latest\n", line(n.Node), millis(&n.WaitMS))
		}
	}
}

func (a *app) keyReceipt() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "receipt KEY", Short: "Show which verifiers hold a key's last change", Args: exactly("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keyPath(args[0])
			if err != nil {
				return err
			}
			ans, err := a.call(c.Context(), "", http.MethodGet, path+"/receipt", nil, nil, nil)
			if err != nil {
				return err
			}
			if a.json {
				if err := a.printJSON(ans); err != nil {
					return err
				}
			}
			r := new(receiptView)
			if err := json.Unmarshal(ans.Data, r); err != nil {
				return fmt.Errorf("the answer is not what this command expects: %w", err)
			}
			return a.showReceipt(r, path+"/receipt", file)
		}}
	c.Flags().StringVar(&file, "receipt", "", "write the signed receipt to this file")
	return c
}

func (a *app) receiptCmd() *cobra.Command {
	c := &cobra.Command{Use: "receipt", Short: "Verify receipts of changes, offline"}
	var key string
	verify := &cobra.Command{Use: "verify FILE", Short: "Verify a signed receipt, offline", Args: exactly("FILE"),
		Long: `Verify that a receipt was signed by the log's key and was not changed. Nothing is
asked of a server. The key is the Ed25519 verifier key of the log's checkpoints, as
'keytrail doctor' prints it; take it from where you trust it, not from whoever gave
you the receipt.`,
		Example: "  keytrail receipt verify revoked.receipt --key keytrail/log/01JH…+1a2b3c4d+AX…",
		RunE: func(c *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			r, err := receipts.Open(b, key)
			if err != nil {
				return err
			}
			if a.json {
				v, err := json.Marshal(r, json.Deterministic(true))
				if err != nil {
					return err
				}
				return a.printJSON(&answer{Data: jsontext.Value(v)})
			}
			fmt.Fprintf(a.out, "%s %s at %d, acknowledged before %s\n", line(r.Resource), line(string(r.Type)), r.Seq, r.Issued)
			nodes := make([]nodeLine, len(r.Nodes))
			for i, n := range r.Nodes {
				nodes[i] = nodeLine{Node: string(n.Node), Status: n.Status, WaitMS: n.WaitMS}
			}
			printNodes(a.out, r.Type, nodes)
			if !r.Complete {
				return errors.New("the receipt is genuine, and not complete")
			}
			return nil
		}}
	verify.Flags().StringVar(&key, "key", "", "the log's Ed25519 verifier key")
	verify.MarkFlagRequired("key")
	c.AddCommand(verify)
	return c
}
