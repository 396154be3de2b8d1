package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// benchKey is a key that a bench has made.
type benchKey struct {
	ID       string `json:"id"`
	Secret   string `json:"key"`
	position string
	space    events.KeyspaceID
}

// define makes the keyspace, or finds it as an earlier bench has made it.
func (b *bench) define(ctx context.Context) error {
	path := "/v1/keyspaces/" + string(b.space)
	var is struct {
		Data keyspaceView `json:"data"`
	}
	header := http.Header{"If-None-Match": {"*"}}
	err := b.call(ctx, http.MethodGet, path, nil, nil, nil, &is)
	if p, ok := errors.AsType[*client.Problem](err); ok && p.Status == http.StatusNotFound {
		err = nil
	} else if err == nil {
		header = forRev(is.Data.Rev)
		if is.Data.Definition.Title != benchTitle {
			return fmt.Errorf("the keyspace %s is not of a bench: its title is not %q; nothing was written", b.space, benchTitle)
		}
	}
	if err != nil {
		return err
	}
	return b.call(ctx, http.MethodPut, path, nil, header, &keyspace.Definition{
		Title: benchTitle, Description: "Made by keytrail bench, which revokes its keys when it ends.",
		KeyTypes: []keyspace.KeyType{{Name: "key", Prefix: "ktbench_"}}, Scopes: []keyspace.ScopeDef{{Name: benchScope}}, Limits: b.mode,
	}, nil)
}

// key makes a key; limit may be nil.
func (b *bench) key(ctx context.Context, limit *keyspace.Limit) (benchKey, error) {
	body := map[string]any{"tenant": b.tenant, "name": fmt.Sprint("bench ", b.made.Add(1)), "scopes": []string{benchScope}, "expires_in": benchKeyLife}
	if limit != nil {
		body["limit"] = limit
	}
	var ans struct {
		Data     benchKey `json:"data"`
		Position string   `json:"position"`
	}
	err := b.call(ctx, http.MethodPost, "/v1/keyspaces/"+string(b.space)+"/keys", nil, http.Header{"Idempotency-Key": {rand.Text()}}, body, &ans)
	ans.Data.position, ans.Data.space = ans.Position, b.space
	return ans.Data, err
}

// keys makes n keys, and waits until every verifier allows the last of them. It returns
// the uses that this has put on the record.
func (b *bench) keys(ctx context.Context, n int) (keys []benchKey, asked uses, err error) {
	defer b.app.progress("making keys", int64(n), b.made.Load)()
	for range n {
		if ctx.Err() != nil {
			return nil, nil, errInterrupted
		}
		k, err := b.key(ctx, nil)
		if err != nil {
			return nil, nil, err
		}
		keys = append(keys, k)
	}
	for _, v := range b.verifiers {
		u, err := b.allowed(ctx, v, &keys[n-1])
		if err != nil {
			return nil, nil, err
		}
		asked = asked.add(u)
	}
	return keys, asked, nil
}

// questionAbout is what is asked about a key. An empty position is not asked for.
func questionAbout(k *benchKey, position string) map[string]any {
	q := map[string]any{"key": k.Secret, "keyspace": k.space, "scope": benchScope}
	if position != "" {
		q["min_position"] = position
	}
	return q
}

// body encodes a question. It is plain data, which encodes whatever it says.
func body(question map[string]any) []byte {
	b, err := json.Marshal(question, json.Deterministic(true))
	if err != nil {
		panic("bench: a question does not encode: " + err.Error())
	}
	return b
}

// allowed asks until the verifier has applied the key. It returns the uses that this has
// put on the record. A key that is denied is not measured: a refusal is answered sooner
// than an allowance, so its figure would mislead.
func (b *bench) allowed(ctx context.Context, verifier string, k *benchKey) (asked uses, err error) {
	ask := body(questionAbout(k, k.position))
	for until := time.Now().Add(benchPatience); ; pauseFor(ctx, benchPause) {
		answer, err := b.post(ctx, verifier+"/v1/verify", ask)
		if err != nil {
			return asked, err
		}
		var t tally
		allowed, err := t.count(answer, 1)
		asked = asked.add(t.numbered)
		switch {
		case err != nil:
			return asked, fmt.Errorf("%s does not answer as a verifier: %w", host(verifier), err)
		case allowed == 1:
			return asked, nil
		case ctx.Err() != nil:
			return asked, errInterrupted
		case t.Reasons[events.ReasonVerifierStale.String()]+t.Reasons[events.ReasonRateLimited.String()] == 0 || time.Now().After(until): // the allocator of exact limits may be appointed just now
			return asked, fmt.Errorf("%s denies a key that was made for it (%s): nothing was measured", host(verifier), t.reasons())
		}
	}
}

// post sends one question and returns the answer, of which no more than a megabyte is
// read.
func (b *bench) post(ctx context.Context, target string, ask []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, benchPatience)
	defer cancel()
	return post(ctx, b.load, target, ask)
}

// remove revokes every key of the run, also those that control made without its answer
// arriving here, and says what stays.
func (b *bench) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchPatience)
	defer cancel()
	if b.made.Load() == 0 || b.own != nil { // its own deployment goes whole
		return nil
	}
	if err := b.revokeAll(ctx); err != nil {
		return fmt.Errorf("not all keys of the tenant %s in %s are revoked: %w; they expire within an hour, or 'keytrail key revoke --keyspace %[2]s --tenant %[1]s --preview' shows them", b.tenant, b.space, err)
	}
	fmt.Fprintf(b.app.err, "note: all keys of this run are revoked; the keyspace %s stays, and on the record the events and uses of its tenant %s\n", b.space, b.tenant)
	return nil
}

// revokeAll revokes the keys of the run that live.
func (b *bench) revokeAll(ctx context.Context) error {
	ask := commands.RevokeMany{Keyspace: b.space, Tenant: b.tenant, Code: events.RevokeCessation, Reason: "the end of a bench"}
	send := func() (page commands.RevokePage, err error) {
		err = b.call(ctx, http.MethodPost, "/v1/keys/revoke", nil, nil, &ask, &page)
		return page, err
	}
	preview, err := send()
	if err != nil || preview.Total == 0 {
		return err
	}
	ask.Confirm, ask.Count = preview.Confirm, &preview.Total
	var done atomic.Int64
	defer b.app.progress("revoking keys", int64(preview.Total), done.Load)()
	for {
		page, err := send()
		if err != nil {
			return err
		}
		done.Add(int64(len(page.Data)))
		for i := range page.Data {
			if page.Data[i].Status == commands.RevokeRefused {
				return fmt.Errorf("the key %s is not: %w", page.Data[i].ID, page.Data[i].Errors)
			}
		}
		if page.NextCursor == nil {
			return nil
		}
		if *page.NextCursor == ask.Cursor {
			return errSameCursor
		}
		ask.Cursor = *page.NextCursor
	}
}
