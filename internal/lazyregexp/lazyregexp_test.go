package lazyregexp_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"mirror-shell/internal/lazyregexp"
)

func TestRegexp(t *testing.T) {
	re := lazyregexp.New(`^(a+)(b?)$`)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if !re.MatchString("aab") || re.MatchString("c") {
				t.Error("it matches something else")
			}
		})
	}
	all.Wait()
	if got := strings.Join(re.FindStringSubmatch("aab"), " "); got != "aab aa b" {
		t.Errorf("found %q", got)
	}
	if first := re.Get(); re.Get() != first {
		t.Error("it is compiled twice")
	}
}

// Every expression of the module compiles: the first use of one may be an error
// message, years after it was written.
func TestAllCompile(t *testing.T) {
	found := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if text := newOf(n); text != nil {
				found++
				checkText(t, path, text)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 10 {
		t.Errorf("only %d expressions found: this test looks in the wrong place", found)
	}
}

// newOf returns the argument when n is a call of lazyregexp.New, else nil.
func newOf(n ast.Node) ast.Expr {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return nil
	}
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || fun.Sel.Name != "New" {
		return nil
	}
	if pkg, ok := fun.X.(*ast.Ident); !ok || pkg.Name != "lazyregexp" {
		return nil
	}
	return call.Args[0]
}

func checkText(t *testing.T, path string, arg ast.Expr) {
	lit, ok := arg.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		t.Errorf("%s: lazyregexp.New is not given a literal, which could not be checked", path)
		return
	}
	text, err := strconv.Unquote(lit.Value)
	if err == nil {
		_, err = regexp.Compile(text)
	}
	if err != nil {
		t.Errorf("%s: %v", path, err)
	}
}
