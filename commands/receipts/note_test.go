package receipts

import (
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

func sample() Receipt {
	log, _ := events.ParseLogID("01JH2Q0000000000000000000G")
	event, _ := events.ParseEventID("01JH2Q8X5T6V7W8Y9Z0ABCDEFH")
	run, _ := events.ParseInstanceID("01JH2Q8X5T6V7W8Y9Z0ABCDEFJ")
	return Receipt{
		Change: Change{Log: log, Resource: "/v1/keys/key_01JH2Q8X5T6V7W8Y9Z0ABCDEFG", Event: event, Type: events.TypeKeyRevoked, Seq: 42},
		Issued: 1767693600000, Control: "control-1",
		Nodes: []Node{
			{Node: "edge-1", Instance: run, Status: Applied, Applied: 44, Epoch: 1767693600000, Decisions: 17, AgeMS: 412, LifeMS: 60000},
			{Node: "edge-2", Instance: run, Status: Waiting, Applied: 40, AgeMS: 41, LifeMS: 60000, WaitMS: 60500},
			{Node: "edge-3", Status: Waiting, WaitMS: 87264000},
		},
	}
}

const sampleText = `keytrail receipt v1
log 01JH2Q0000000000000000000G
resource /v1/keys/key_01JH2Q8X5T6V7W8Y9Z0ABCDEFG
event 01JH2Q8X5T6V7W8Y9Z0ABCDEFH key.revoked at 42
issued 2026-01-06T10:00:00.000Z by control-1
incomplete 1 of 3
node edge-1 01JH2Q8X5T6V7W8Y9Z0ABCDEFJ applied at=44 epoch=1767693600000 decisions=17 age_ms=412 life_ms=60000 wait_ms=0
node edge-2 01JH2Q8X5T6V7W8Y9Z0ABCDEFJ waiting at=40 epoch=0 decisions=0 age_ms=41 life_ms=60000 wait_ms=60500
node edge-3 unreadable waiting at=0 epoch=0 decisions=0 age_ms=0 life_ms=0 wait_ms=87264000
`

func TestText(t *testing.T) {
	r := sample()
	if got := r.text(); got != sampleText {
		t.Errorf("the text is\n%s\nwant\n%s", got, sampleText)
	}
	again, err := parse(sampleText)
	if err != nil || again.text() != sampleText || again.Nodes[2].Status != Waiting {
		t.Errorf("%+v, %v", again, err)
	}
	for what, bad := range map[string]string{
		"complete with a node that waits": strings.Replace(sampleText, "incomplete 1", "complete 1", 1),
		"another count":                   strings.Replace(sampleText, "1 of 3", "3 of 3", 1),
		"a node less":                     sampleText[:strings.LastIndex(sampleText, "node ")],
		"a space more":                    strings.Replace(sampleText, "at 42", "at  42", 1),
		"a zero before":                   strings.Replace(sampleText, "at=44", "at=044", 1),
		"a minus":                         strings.Replace(sampleText, "at=44", "at=-4", 1),
		"an unknown status":               strings.Replace(sampleText, "applied at", "refused at", 1),
		"no end of line":                  strings.TrimSuffix(sampleText, "\n"),
		"a line more":                     sampleText + "\n",
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sampleText)
	f.Add("keytrail receipt v1\n\n\n\n\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parse(text)
		if err == nil && r.text() != text {
			t.Errorf("%q is accepted and printed as %q", text, r.text())
		}
	})
}

// A receipt is verified with the key of receipts or with that of the checkpoints, and
// with no other; whatever is changed in it, it is refused.
func TestOpen(t *testing.T) {
	r := sample()
	origin := tree.Origin(r.Log.String())
	signer, err := tree.NewSigner(origin, tree.GenerateKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	file, signed, err := NewIssuer(IssuerConfig{Signer: signer.Note(KeySuffix)}).Note(&r)
	if err != nil || !signed || !strings.HasPrefix(file, sampleText+"\n\u2014 "+origin+"/receipt ") {
		t.Fatal(file, signed, err)
	}
	for _, key := range []string{signer.VKeys()[0], signer.NoteVKey(KeySuffix)} {
		if got, err := Open([]byte(file), key); err != nil || got.text() != sampleText {
			t.Error(got, err)
		}
	}
	other, _ := tree.NewSigner(origin, tree.GenerateKeyFile())
	for what, key := range map[string]string{"another key": other.VKeys()[0], "the key of ML-DSA-44": signer.VKeys()[1], "no key": "x"} {
		if _, err := Open([]byte(file), key); err == nil {
			t.Errorf("%s verifies it", what)
		}
	}
	for i := range file {
		for bit := range 8 {
			b := []byte(file)
			b[i] ^= 1 << bit
			if _, err := Open(b, signer.VKeys()[0]); err == nil {
				t.Errorf("bit %d of byte %d may be changed", bit, i)
			}
		}
	}
	if _, err := Open([]byte(file+file[strings.Index(file, "\n\n")+2:]), signer.VKeys()[0]); err == nil {
		t.Error("a signature may stand twice")
	}
	foreign, _ := tree.NewSigner(tree.Origin("01JH2Q0000000000000000000H"), tree.GenerateKeyFile())
	file, _, _ = NewIssuer(IssuerConfig{Signer: foreign.Note(KeySuffix)}).Note(&r)
	if _, err := Open([]byte(file), foreign.VKeys()[0]); err == nil {
		t.Error("a key of another log verifies it")
	}
	if text, signed, err := NewIssuer(IssuerConfig{}).Note(&r); err != nil || signed || text != sampleText {
		t.Errorf("without a key: %v %v", signed, err)
	}
	if _, err := Open([]byte(sampleText), signer.VKeys()[0]); err == nil {
		t.Error("a receipt that is not signed is accepted")
	}
}
