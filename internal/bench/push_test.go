package bench_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mirror-shell/internal/bench"
	"mirror-shell/internal/testenv"
)

// hooks is what our two hooks add to a user's push, against two hooks that are
// empty Go programs. The push is to a path, so that no ssh login hides the
// difference; the peers are paused, so that nothing else runs beside it.
func (a *arena) hooks(rounds int) bench.Case {
	t := a.t
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)
	for _, peer := range []string{"sam", "gollum"} {
		a.frodo.MustRun(t, "mirror-shell", "pause", peer)
		defer a.frodo.MustRun(t, "mirror-shell", "resume", peer)
	}
	a.CreateRepo(t, "hooked", map[string]string{"master": "frodo", "slaves": "sam gollum"}, "frodo")
	defer a.frodo.MustRun(t, "mirror-shell", "forget", "hooked")
	a.CreateRepo(t, "emptyhooks", nil, "frodo")
	a.CreateRepo(t, "plain", nil, "frodo")
	empty := a.emptyProgram()
	a.removeHooks(a.frodo, "plain")
	a.removeHooks(a.frodo, "emptyhooks")
	for _, hook := range []string{"pre-receive", "post-receive"} {
		if err := os.Symlink(empty, filepath.Join(a.frodo.RepoDir("emptyhooks"), "hooks", hook)); err != nil {
			t.Fatal(err)
		}
	}
	local := filepath.Join(a.frodo.Home(), "work")
	a.frodo.MustRun(t, "git", "init", "-q", local)
	n := 0
	push := func(repo string) func() time.Duration {
		return func() time.Duration {
			n++
			a.frodo.MustRun(t, "git", "-C", local, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(n))
			began := time.Now()
			a.frodo.MustRun(t, "git", "-C", local, "push", "-q", a.frodo.RepoDir(repo), "HEAD:refs/heads/main")
			return time.Since(began)
		}
	}
	const ours, rival = "ours, two slaves", "two empty Go hooks"
	return bench.Measure("hooks: added to a push", rounds*2,
		bench.Contestant{Name: ours, Run: push("hooked")},
		bench.Contestant{Name: rival, Run: push("emptyhooks")},
		bench.Contestant{Name: "push without hooks", Run: push("plain")}).Above().
		Must(bench.AtMostTimes(ours, rival, 4))
}

// naiveHook is what people write: mirror pushes in the background, nothing kept.
const naiveHook = `#!/bin/sh
for slave in sam gollum; do
	git push -q --mirror $slave:rival >/dev/null 2>&1 </dev/null &
done
`

// gitoliteConf is the entry of a repository that gl-frodo mirrors.
const gitoliteConf = `
repo ip1
    RW+ = alice
    option mirror.master = gl-frodo
    option mirror.copies = gl-sam gl-gollum
`

// slavesEqual is the time from the end of a user's push until both slaves have
// it. All pushes are alice's, over ssh.
func (a *arena) slavesEqual(rounds int) bench.Case {
	t := a.t
	hosts := a.Gitolites(t, "gl-frodo", "gl-sam", "gl-gollum")
	for _, g := range hosts {
		g.AddUser(t, a.alice)
		g.AddConf(t, gitoliteConf)
	}
	a.CreateRepo(t, "ip1", map[string]string{"master": "frodo", "slaves": "sam gollum"})
	a.CreateRepo(t, "rival", map[string]string{"master": "frodo"}, "sam", "gollum")
	a.CreateRepo(t, "rival", nil, "frodo")
	for _, s := range []*testenv.Server{a.frodo, a.sam, a.gollum} {
		a.removeHooks(s, "rival")
	}
	if err := os.WriteFile(filepath.Join(a.frodo.RepoDir("rival"), "hooks/post-receive"), []byte(naiveHook), 0o755); err != nil {
		t.Fatal(err)
	}
	arrive := func(url, repo string, slaves ...*testenv.Server) time.Duration {
		oid := a.commit()
		a.push(url)
		took := a.arrived(repo, oid, slaves...)
		if repo == "ip1" && slaves[0] == a.sam {
			a.settle()
		}
		a.rest()
		return took
	}
	ours := func() time.Duration { return arrive("frodo:ip1", "ip1", a.sam, a.gollum) }
	const serve, drain, gitolite = "serve", "no daemon", "gitolite3"
	return bench.Measure("push returned → two slaves equal", rounds,
		bench.Contestant{Name: serve, Run: func() time.Duration {
			a.frodo.Serve(t)
			defer a.frodo.StopServe(t)
			ours() // a daemon has been running for a while, and has its connections
			return ours()
		}},
		bench.Contestant{Name: drain, Run: ours},
		bench.Contestant{Name: gitolite, Run: func() time.Duration {
			return arrive(hosts[0].URL("ip1"), "ip1", hosts[1].Host(), hosts[2].Host())
		}},
		bench.Contestant{Name: "git push --mirror in a hook", Run: func() time.Duration {
			return arrive("frodo:rival", "rival", a.sam, a.gollum)
		}},
	).Must(bench.Faster(serve, gitolite, 10), bench.Faster(drain, gitolite, 2))
}

// settle waits until frodo's worker has nothing left to do with ip1.
func (a *arena) settle() {
	done := testenv.Poll(func() bool {
		text := a.frodo.MustRun(a.t, "mirror-shell", "status", "ip1")
		return !strings.Contains(text, "running") && !strings.Contains(text, "waiting")
	})
	if !done {
		a.t.Fatalf("ip1 does not become equal:\n%s", a.frodo.MustRun(a.t, "mirror-shell", "status", "ip1"))
	}
}

// burst is what mirroring costs somebody who pushes a hundred times in a row,
// and how long after the last push both slaves are equal.
func (a *arena) burst(rounds int) []bench.Case {
	t := a.t
	const pushes = 100
	a.CreateRepo(t, "burst", map[string]string{"master": "frodo", "slaves": "sam gollum"})
	a.CreateRepo(t, "calm", nil, "frodo")
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)
	const mirrored, alone, settled = "mirrored to two slaves", "not mirrored", "two slaves equal"
	after := bench.Sample{Name: settled}
	many := func(repo string, then func(oid string)) func() time.Duration {
		return func() time.Duration {
			var took time.Duration
			oid := ""
			for range pushes {
				oid = a.commit()
				took += a.push("frodo:" + repo)
			}
			then(oid)
			return took / pushes
		}
	}
	c := bench.Measure(fmt.Sprintf("burst: %d pushes in a row, per push", pushes), max(1, rounds/5),
		bench.Contestant{Name: mirrored, Run: many("burst", func(oid string) {
			after.Values = append(after.Values, float64(a.arrived("burst", oid, a.sam, a.gollum)))
			a.rest()
		})},
		bench.Contestant{Name: alone, Run: many("calm", func(string) { a.rest() })})
	after.Values = after.Values[1:] // the turn that does not count
	return []bench.Case{
		c.Must(bench.AtMostTimes(mirrored, alone, 1.3)),
		bench.Case{Name: "burst: after the last push", Unit: bench.Nanoseconds, Samples: []bench.Sample{after}}.
			Must(bench.AtMost(settled, float64(time.Second))),
	}
}
