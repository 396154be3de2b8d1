package cmd_test

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// answering are the packages that answer callers.
var answering = []string{"events", "events/input", "events/keyspace", "internal/api", "projections", "commands", "verifier", "verifier/extauthz", "audit"}

// TestTextIsEchoed: the packages that answer callers put text into quotes, and an
// id or a part of a request into any text, only by input.Echo, which repeats
// nothing that could be a secret, or by input.Quote, which is for names of the
// record. So the verb %q does not occur.
func TestTextIsEchoed(t *testing.T) {
	args := []string{"-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}\t{{.Dir}}\t{{join .GoFiles \" \"}}", "--"}
	for _, p := range answering {
		args = append(args, "../"+p)
	}
	exports, sources := map[string]string{}, map[string][]string{}
	for line := range strings.Lines(goList(t, args...)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		exports[f[0]] = f[1]
		for _, name := range strings.Fields(f[3]) {
			sources[f[0]] = append(sources[f[0]], filepath.Join(f[2], name))
		}
	}
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	calls := 0
	for _, pkg := range answering {
		var files []*ast.File
		for _, name := range sources[module+pkg] {
			f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
		if _, err := (&types.Config{Importer: imports}).Check(module+pkg, fset, files, info); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || !formats(info, call) {
					return true
				}
				calls++
				for _, x := range call.Args {
					if v := info.Types[x].Value; v != nil && strings.Contains(v.ExactString(), "%q") {
						t.Errorf("%s: %%q repeats text as it is: want %%s with input.Echo, or input.Quote for a name of the record", fset.Position(x.Pos()))
					}
					if what := raw(info, x); what != "" {
						t.Errorf("%s: %s repeats %s as it is: want input.Echo, or input.Quote for a name of the record", fset.Position(x.Pos()), types.ExprString(x), what)
					}
				}
				return true
			})
		}
	}
	if calls < 200 {
		t.Errorf("found %d calls that format: the test does not see what it is for", calls)
	}
}

// formats reports whether the call makes text for an answer, an error or a line of
// the log: any function of a text and further arguments of any type, as
// fmt.Errorf and slog's are. What is written to a writer is no such text.
func formats(info *types.Info, call *ast.CallExpr) bool {
	sig, ok := info.Types[call.Fun].Type.(*types.Signature)
	if !ok || !sig.Variadic() || strings.HasPrefix(funcName(call.Fun), "Fprint") {
		return false
	}
	last, ok := sig.Params().At(sig.Params().Len() - 1).Type().(*types.Slice)
	if !ok || !types.Identical(last.Elem().Underlying(), types.NewInterfaceType(nil, nil)) {
		return false
	}
	for v := range sig.Params().Variables() {
		if types.Identical(v.Type(), types.Typ[types.String]) {
			return true
		}
	}
	return false
}

// ids are the types of text that a caller may have chosen.
var ids = []string{"events.KeyspaceID", "events.TenantID", "events.RoleID"}

// raw says what x is of a request, "" when it is nothing of one.
func raw(info *types.Info, x ast.Expr) (what string) {
	if info.Types[x].Value != nil {
		return ""
	}
	if t := strings.TrimPrefix(types.TypeString(info.Types[x].Type, nil), module); slices.Contains(ids, t) {
		return "an id"
	}
	ast.Inspect(x, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			switch funcName(n.Fun) {
			case "Echo", "EchoName", "Quote", "len":
				return false
			case "PathValue", "UserAgent", "FormValue", "Referer":
				what = "a part of a request"
			}
		case *ast.SelectorExpr:
			switch types.TypeString(info.Types[n.X].Type, nil) {
			case "*net/url.URL", "net/http.Header", "net/url.Values":
				what = "a part of a request"
			}
		}
		return true
	})
	return what
}

func funcName(f ast.Expr) string {
	switch f := f.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}
