package testenv_test

import (
	"testing"

	"mirror-shell/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestScripts runs the scripts that can share one world, in which frodo and sam
// are served and alice and bob are users everywhere. Their repositories are
// their own.
func TestScripts(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "frodo", "sam", "gollum")
	for _, name := range []string{"alice", "bob"} {
		env.AddUser(t, name)
	}
	env.Server(t, "frodo").Serve(t)
	env.Server(t, "sam").Serve(t)
	testenv.RunScripts(t, "testdata/script", func(testing.TB) *testenv.Env { return env })
}

// TestWorkers runs the scripts that stop, pause, kill or reconfigure something,
// each in a world of its own in which nothing is served and alice is a user
// everywhere.
func TestWorkers(t *testing.T) {
	t.Parallel()
	testenv.RunScripts(t, "testdata/worker", func(t testing.TB) *testenv.Env {
		env := testenv.New(t, "frodo", "sam", "gollum")
		env.AddUser(t, "alice")
		return env
	})
}
