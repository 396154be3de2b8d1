package cmd_test

import (
	"os"
	"strings"
	"testing"
)

// TestRequestsAreReadInOnePlace: what net/http offers for reading a request takes
// what it cannot read for absent. internal/api reads strictly, for every endpoint.
func TestRequestsAreReadInOnePlace(t *testing.T) {
	out := goList(t, "-f", `{{range .GoFiles}}{{$.Dir}}/{{.}}{{"\n"}}{{end}}`, "../...")
	read := 0
	for file := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		if file == "" || strings.Contains(file, "/internal/api/") {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		read++
		for _, not := range []string{".URL.Query()", "url.ParseQuery(", ".FormValue(", ".PostFormValue(", ".ParseForm(", ".ParseMultipartForm(", "ReadAll(r.Body"} {
			if strings.Contains(string(b), not) {
				t.Errorf("%s uses %s: declare what the endpoint takes with api.Endpoint, or read with api.ParseQuery", file, not)
			}
		}
	}
	if read < 100 {
		t.Fatalf("only %d files were read", read)
	}
}
