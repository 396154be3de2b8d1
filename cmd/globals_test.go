package cmd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// TestNoPackageExportsAVariable: what another package could change by an assignment
// is a function's result. Errors to compare with and embedded files are variables by
// the language alone.
func TestNoPackageExportsAVariable(t *testing.T) {
	seen := 0
	eachSource(t, func(path string) error {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				if embedded(v.Type) {
					continue
				}
				for _, name := range v.Names {
					seen++
					if name.IsExported() && !strings.HasPrefix(name.Name, "Err") {
						t.Errorf("%s: %s can be changed by any package: want a constant or a function", fset.Position(name.Pos()), name.Name)
					}
				}
			}
		}
		return nil
	})
	if seen < 50 {
		t.Errorf("found %d variables: the test does not see what it is for", seen)
	}
}

// embedded reports whether a variable's type is embed.FS.
func embedded(typ ast.Expr) bool {
	s, ok := typ.(*ast.SelectorExpr)
	return ok && s.Sel.Name == "FS"
}
