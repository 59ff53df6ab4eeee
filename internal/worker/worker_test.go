package worker_test

import (
	"testing"

	"mirror-shell/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestScripts runs what an administrator does, on three real servers.
func TestScripts(t *testing.T) {
	testenv.RunScripts(t, "testdata/script", func(t testing.TB) *testenv.Env {
		env := testenv.New(t, "frodo", "sam", "gollum")
		env.AddUser(t, "alice")
		return env
	})
}
