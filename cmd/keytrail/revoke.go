package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
)

// manyFlags are the flags by which `key revoke` ends many keys.
type manyFlags struct {
	keyspace, tenant, creator, token string
	preview                          bool
	confirm                          int
}

func (m *manyFlags) given() bool { return m.keyspace != "" || m.tenant != "" || m.creator != "" }

// revokeMany lets `key revoke` end many keys. code is its --code.
func (a *app) revokeMany(c *cobra.Command, code *string) {
	var m manyFlags
	f := c.Flags()
	f.StringVar(&m.creator, "created-by", "", "all keys that this operator key created, imported or rotated")
	f.StringVar(&m.keyspace, "keyspace", "", "all keys of this keyspace")
	f.StringVar(&m.tenant, "tenant", "", "all keys of this tenant")
	f.BoolVar(&m.preview, "preview", false, "show which keys would be revoked, and how many")
	f.IntVar(&m.confirm, "confirm", 0, "revoke them, if there are as many as this")
	f.StringVar(&m.token, "token", "", "with --confirm: revoke exactly the keys of the preview that gave this")
	c.MarkFlagsMutuallyExclusive("preview", "confirm")
	c.MarkFlagsMutuallyExclusive("preview", "token")
	c.Use = "revoke [KEY]"
	one := c.RunE
	c.Args = func(c *cobra.Command, args []string) error {
		switch {
		case !m.given() && (m.preview || m.confirm != 0 || m.token != ""):
			return usageError{errors.New("--preview, --confirm and --token are for many keys: want --created-by, --keyspace or --tenant as well")}
		case !m.given():
			return exactly("KEY")(c, args)
		case len(args) > 0:
			return usageError{errors.New("want either KEY or --created-by, --keyspace and --tenant, not both")}
		case !m.preview && m.confirm == 0:
			return usageError{errors.New("want --preview, which shows the keys, or --confirm with their number")}
		case c.Flags().Changed("if-rev"):
			return usageError{errors.New("--if-rev is for one key")}
		case m.preview && c.Flags().Changed("wait"):
			return usageError{errors.New("--wait is for --confirm: a preview writes nothing")}
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if !m.given() {
			return one(c, args)
		}
		reason, _ := c.Flags().GetString("reason")
		wait, err := readWait(c)
		if err != nil {
			return err
		}
		return a.revokeAll(c.Context(), &m, wait, commands.RevokeMany{
			Keyspace: events.KeyspaceID(m.keyspace), Tenant: events.TenantID(m.tenant), CreatedBy: m.creator,
			Code: events.RevokeCode(*code), Reason: reason,
		})
	}
}

// revokeAll previews or revokes, page by page. Without a token of a preview it
// makes one of its own, which bounds what it revokes. One receipt, of the last
// revocation of all, shows that all of them hold.
func (a *app) revokeAll(ctx context.Context, m *manyFlags, wait waitFlags, ask commands.RevokeMany) error {
	send := func() (*answer, *commands.RevokePage, error) {
		ans, err := a.call(ctx, "", http.MethodPost, "/v1/keys/revoke", nil, nil, &ask)
		if err != nil {
			return nil, nil, err
		}
		page := new(commands.RevokePage)
		b, err := json.Marshal(ans)
		if err == nil {
			err = json.Unmarshal(b, page)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the answer is not what this command expects: %w", err)
		}
		return ans, page, nil
	}
	if !m.preview {
		if ask.Confirm = m.token; m.token == "" {
			_, preview, err := send()
			if err != nil {
				return err
			}
			if preview.Total != m.confirm {
				return fmt.Errorf("%d keys match now, and %d are confirmed: nothing was revoked; look at them again with --preview", preview.Total, m.confirm)
			}
			ask.Confirm = preview.Confirm
		}
		ask.Count = &m.confirm
	}
	var p pages = &jsonPages{out: a.out}
	if !a.json {
		p = &textPages[commands.RevokeResult]{out: a.out, err: a.err, head: "KEYSPACE\tTENANT\tKEY\tNAME\tHINT\tOUTCOME", row: revokeRow}
	}
	var first *commands.RevokePage
	done, refused, last := 0, 0, ""
	for {
		ans, page, err := send()
		if err != nil {
			return err
		}
		if first == nil {
			first = page
		}
		if page.ReceiptURL != "" {
			last = page.ReceiptURL
		}
		for i := range page.Data {
			if page.Data[i].Status == commands.RevokeRefused {
				refused++
			} else {
				done++
			}
		}
		if err := p.page(ans); err != nil {
			return err
		}
		if page.NextCursor == nil {
			switch {
			case wait.wait && last != "":
				if err := beside(ans, "receipt_url", last); err != nil {
					return err
				}
			case wait.wait:
				wait.wait = false
				fmt.Fprintln(a.err, "note: no key was revoked now, so there is no receipt; 'keytrail key receipt KEY' shows one of an earlier revocation")
			}
			err := a.told(ctx, wait, ans, func() error {
				if err := p.end(ans); err != nil || a.json {
					return err
				}
				switch {
				case m.preview && first.Total == 0:
					fmt.Fprintln(a.out, "no key that lives matches")
				case m.preview:
					fmt.Fprintf(a.out, "%d keys would be revoked, nothing was written; to revoke exactly these, give --confirm %d --token %s\n", first.Total, first.Total, first.Confirm)
				default:
					fmt.Fprintf(a.out, "%d of %d keys revoked\n", done, first.Total)
				}
				return nil
			})
			return errors.Join(notRevoked(refused), err)
		}
		if *page.NextCursor == ask.Cursor {
			return errSameCursor
		}
		ask.Cursor = *page.NextCursor
	}
}

func notRevoked(refused int) error {
	if refused == 0 {
		return nil
	}
	return fmt.Errorf("%d keys cannot be revoked like this; the list says why", refused)
}

func revokeRow(k *commands.RevokeResult) string {
	outcome := string(k.Status)
	for _, e := range k.Errors {
		outcome += ": " + e.Message
	}
	return cells(string(k.Keyspace), string(k.Tenant), k.ID.String(), k.Name, k.Hint, outcome)
}
