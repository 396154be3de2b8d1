package commands

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// The bounds of wait_timeout. It is shorter than what proxies wait for an answer.
const (
	waitDefault = 15 * time.Second
	waitMax     = 50 * time.Second
	receiptWait = time.Second // for the answers of the nodes, where nobody asked to wait
)

// waitQuery are the parameters of the endpoints that can wait for a receipt.
const waitQuery = " wait wait_timeout"

// ReceiptView is a receipt as an endpoint shows it.
type ReceiptView struct {
	receipts.Receipt
	Signed bool   `json:"signed"`
	Note   string `json:"note"` // the same as text, with its signature; keytrail receipt verify reads it
}

// waits reads the parameters: for how long the request waits for a receipt, 0 where it
// asks for none.
func (r *request) waits() (time.Duration, error) {
	var f input.FieldErrors
	if r.Query.Has("wait") && r.Query.Get("wait") != "applied" {
		f.Add("wait", "invalid", "want applied, or leave it out")
	}
	d := waitDefault
	if s := r.Query.Get("wait_timeout"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil || d < time.Millisecond || d > waitMax {
			f.Add("wait_timeout", "invalid", fmt.Sprintf("want a duration of 1ms to %s, as 20s", waitMax))
		}
		if !r.Query.Has("wait") {
			f.Add("wait_timeout", "conflict", "want it with wait=applied only")
		}
	}
	if !r.Query.Has("wait") {
		d = 0
	}
	return d, f.OrNil()
}

// waiting lets a command's endpoint wait until every node has applied the command,
// where the request asks for that. The answer then carries the receipt, and is 202
// where that is not complete in time. A receipt that cannot be made at all is null, and
// the answer is 202 as well: the command is carried out, and its answer may hold a
// secret that is told once. receipt_url is where the receipt is made later.
func (h *Handler) waiting(serve func(*request) (*answer, error)) func(*request) (*answer, error) {
	return func(r *request) (*answer, error) {
		wait, err := r.waits()
		if err != nil {
			return nil, err
		}
		a, err := serve(r)
		if err != nil || wait == 0 {
			return a, err
		}
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		var v *ReceiptView
		switch body := a.body.(type) {
		case api.One:
			if a.seq == 0 {
				return a, nil // nothing was ever written of it
			}
			resource := r.resource()
			v, err = h.receiptOf(ctx, r, resource, a.seq)
			a.body = withReceipt{body, v, resource + receiptSuffix}
		case RevokePage:
			if a.seq == 0 {
				return a, nil // a preview, or a page of keys that had ended
			}
			resource := strings.TrimSuffix(body.ReceiptURL, receiptSuffix)
			v, err = h.receipt(ctx, body.last.Aggregate(), resource, a.seq)
			a.body = pageWithReceipt{body, v}
		default:
			return a, nil // a dry run
		}
		if err != nil {
			h.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the receipt of a change is not made", slog.Any("err", err))
		}
		if v == nil || !v.Complete {
			a.status = http.StatusAccepted
		}
		return a, nil
	}
}

type withReceipt struct {
	api.One
	Receipt    *ReceiptView `json:"receipt"`
	ReceiptURL string       `json:"receipt_url"`
}

type pageWithReceipt struct {
	RevokePage
	Receipt *ReceiptView `json:"receipt"`
}

// receiptSuffix follows the path of a resource in that of its receipt.
const receiptSuffix = "/receipt"

// getReceipt makes the receipt of the last event of what the path names anew, from
// what the nodes say now.
func (h *Handler) getReceipt(r *request) (*answer, error) {
	wait, err := r.waits()
	if err != nil {
		return nil, err
	}
	if err := h.mayAskFor(r); err != nil {
		return nil, err
	}
	if wait == 0 {
		wait = receiptWait
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	v, err := h.receiptOf(ctx, r, r.resource(), 0)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: api.One{Data: v}}, nil
}

// mayAskFor refuses what the caller may not know of. A deleted role is known still:
// its deletion is what a receipt is asked for.
func (h *Handler) mayAskFor(r *request) error {
	ref := r.roleRef()
	switch {
	case r.PathValue("id") != "":
		id, err := r.keyID()
		if err != nil {
			return err
		}
		if k, ok := h.cfg.Dir.Key(id); !ok || !sees(&r.Who, &k) {
			return noKey(id, ok)
		}
	case ref.Role != "":
		if _, ok := h.cfg.Dir.Role(ref.Keyspace, ref.Tenant, ref.Role); !ok || !seesRoles(&r.Who, ref.Keyspace, ref.Tenant) {
			return notFound(ok, "there is no such role")
		}
	case ref.Tenant != "":
		_, err := h.getTenant(r)
		return err
	default:
		_, err := h.getKeyspace(r)
		return err
	}
	return nil
}

// receiptOf is receipt for what the request's path names.
func (h *Handler) receiptOf(ctx context.Context, r *request, resource string, seq events.Seq) (*ReceiptView, error) {
	ref := r.roleRef()
	agg := events.KeyspaceAggregate(ref.Keyspace)
	switch {
	case r.PathValue("id") != "":
		id, err := r.keyID()
		if err != nil {
			return nil, err
		}
		key, err := h.find(ctx, id)
		if err != nil {
			return nil, err
		}
		agg = key.Aggregate()
	case ref.Role != "":
		agg = events.RoleAggregate(ref.Keyspace, ref.Tenant, ref.Role)
	case ref.Tenant != "":
		agg = events.TenantAggregate(ref.Keyspace, ref.Tenant)
	}
	return h.receipt(ctx, agg, resource, seq)
}

// receipt makes the receipt of the aggregate's event at seq, of its last event where
// seq is 0.
func (h *Handler) receipt(ctx context.Context, agg events.Aggregate, resource string, seq events.Seq) (*ReceiptView, error) {
	history, err := h.cfg.Log.Load(ctx, agg)
	if err != nil {
		return nil, err
	}
	var last *events.Recorded
	for i := range history {
		if seq == 0 || history[i].Seq <= seq {
			last = &history[i]
		}
	}
	if last == nil {
		return nil, refuse(CodeNotFound, "", "nothing of it was ever changed: there is no event that a receipt could be about")
	}
	receipt, err := h.cfg.Receipts.Issue(ctx, receipts.Change{Log: h.cfg.Log.ID(), Resource: resource, Event: last.ID, Type: last.Type(), Seq: last.Seq})
	outcome := "complete"
	switch {
	case err != nil:
		outcome = "not_made"
	case !receipt.Complete:
		outcome = "incomplete"
	}
	h.metrics.receipts.WithLabelValues(outcome).Inc()
	if err != nil {
		return nil, err
	}
	text, signed, err := h.cfg.Receipts.Note(&receipt)
	if err != nil {
		return nil, err
	}
	return &ReceiptView{receipt, signed, text}, nil
}

// resource returns the path of what the request's path names.
func (r *request) resource() string {
	ref := r.roleRef()
	path := "/v1/keyspaces/" + url.PathEscape(string(ref.Keyspace))
	switch {
	case r.PathValue("id") != "":
		return "/v1/keys/" + url.PathEscape(r.PathValue("id"))
	case ref.Tenant == "":
		return path
	case ref.Role == "":
		return path + "/tenants/" + url.PathEscape(string(ref.Tenant))
	}
	return path + "/tenants/" + url.PathEscape(string(ref.Tenant)) + "/roles/" + url.PathEscape(string(ref.Role))
}
