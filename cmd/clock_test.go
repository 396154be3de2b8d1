package cmd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// wallClocks are the places that may compare instants by the wall clock, with how
// often: both instants come from different processes, so no steady clock has both.
var wallClocks = map[string]int{
	"projections/metrics.go":          1,
	"cmd/keytrail/doctor_gateways.go": 1,
}

// TestElapsedTimeIsSteady: an instant that was rebuilt from a number has lost the
// steady clock's reading, so that a clock which is set back stops whatever waits
// for the time since.
func TestElapsedTimeIsSteady(t *testing.T) {
	found := map[string]int{}
	files := 0
	eachSource(t, func(path string) error {
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && elapsed(call) {
				found[filepath.ToSlash(strings.TrimPrefix(path, ".."+string(filepath.Separator)))]++
			}
			return true
		})
		return nil
	})
	if files < 100 {
		t.Fatalf("%d files", files)
	}
	for path, n := range found {
		if n > wallClocks[path] {
			t.Errorf("%s: the time since an instant that was rebuilt from a number: keep the time.Time, or a duration since one", path)
		}
	}
	for path, n := range wallClocks {
		if found[path] < n {
			t.Errorf("the table allows %s %d comparisons, it has %d", path, n, found[path])
		}
	}
}

// elapsed reports whether call is time.Since, time.Until or a Sub of an instant
// that was rebuilt from a number.
func elapsed(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) != 1 {
		return false
	}
	switch sel.Sel.Name {
	case "Since", "Until":
		return rebuilt(call.Args[0])
	case "Sub":
		return rebuilt(call.Args[0]) || rebuilt(sel.X)
	}
	return false
}

func rebuilt(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	switch sel.Sel.Name {
	case "Unix", "UnixMilli", "UnixMicro", "Std":
		return true
	}
	return false
}
