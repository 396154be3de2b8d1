package dial

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestPasswordIsNotPrinted(t *testing.T) {
	login := Login{User: "ctrl", Password: "sesame"}
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("login", "login", login, "password", login.Password)
	slog.New(slog.NewTextHandler(&out, nil)).Info("login", "login", login, "password", login.Password)
	fmt.Fprintf(&out, "%v %+v %#v %s %q %x %v %v", login, login, login, login.Password, login.Password, login.Password, &login, []any{login})
	for _, verb := range "vTtbcdoOqxXUeEfFgGs" { // fmt asks nobody for %p, and vet refuses it
		fmt.Fprintf(&out, "%"+string(verb)+" %+"+string(verb)+" %#"+string(verb), login.Password, login, &login)
	}
	b, err := json.Marshal(map[string]any{"login": login.Password})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	for _, s := range []string{"sesame", fmt.Sprintf("%x", "sesame")} {
		if strings.Contains(out.String(), s) {
			t.Errorf("the password is printed: %s", out.String())
		}
	}
	if strings.Count(out.String(), redacted) < 8 {
		t.Errorf("not all of it is there: %s", out.String())
	}
}
