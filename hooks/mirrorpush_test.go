package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// quickPush is a push of sam by the verb mirror-push to the slave ip1.
func (w *world) quickPush(dir, peer string, warned *[]string) *MirrorPush {
	w.t.Helper()
	server, err := mirrorcfg.Load(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg, err := mirrorcfg.LoadRepo(w.t.Context(), "ip1", git.Repo{Dir: dir})
	if err != nil {
		w.t.Fatal(err)
	}
	p := &MirrorPush{Server: server, Config: cfg, Repo: git.Repo{Dir: dir}, Peer: peer, Programs: w.programs,
		Warn: func(what string, err error) { *warned = append(*warned, what+": "+err.Error()) }}
	w.t.Cleanup(p.Close)
	return p
}

func (w *world) received(dir string) *refset.Log {
	w.t.Helper()
	log, err := refset.Open(refset.Received(dir))
	if err != nil {
		w.t.Fatal(err)
	}
	return log
}

// A push that is taken without hooks leaves the same record as one with them.
func TestMirrorPush(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	old, next := w.oid, strings.Repeat("1", 40)
	stale := refset.Path(dir, "gollum")
	if err := os.MkdirAll(filepath.Dir(stale), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write(stale, "", 0o600)
	var warned []string
	p := w.quickPush(dir, "sam", &warned)
	alone, err := p.Begin(t.Context(), []sendpack.Command{{Ref: "refs/heads/main", Old: old, New: next}, {Ref: "refs/heads/x", Old: zero, New: next}})
	if err != nil || !alone {
		t.Fatalf("%v, %v", alone, err)
	}
	if log := w.received(dir); !log.Ours("refs/heads/main", next) || !log.Ours("refs/heads/main", old) || !log.Ours("refs/heads/x", next) {
		t.Error("what is going to be set is not on record before it is")
	}
	p.Done()
	log := w.received(dir)
	if got, _ := log.Confirmed("refs/heads/main"); got != next || log.Ours("refs/heads/main", old) {
		t.Errorf("confirmed %s", got)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("what was known of gollum from another reign: %v", err)
	}
	if len(warned) > 0 {
		t.Errorf("warned: %q", warned)
	}
}

// While a pack arrives, others may get at the record.
func TestMirrorPushBesideAnother(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	one, two := strings.Repeat("1", 40), strings.Repeat("2", 40)
	var warned []string
	p, q := w.quickPush(dir, "sam", &warned), w.quickPush(dir, "sam", &warned)
	for ref, push := range map[string]*MirrorPush{"refs/heads/a": p, "refs/heads/b": q} {
		if _, err := push.Begin(t.Context(), []sendpack.Command{{Ref: ref, Old: zero, New: one}}); err != nil {
			t.Fatal(err)
		}
	}
	w.mirror(dir, "main:refs/heads/c") // and one with hooks
	q.Done()
	p.Done()
	log := w.received(dir)
	for _, ref := range []string{"refs/heads/a", "refs/heads/b"} {
		if got, _ := log.Confirmed(ref); got != one {
			t.Errorf("%s: %q", ref, got)
		}
	}
	if got, _ := log.Confirmed("refs/heads/c"); got != w.oid || log.Ours("refs/heads/a", two) || len(warned) > 0 {
		t.Errorf("refs/heads/c: %q, warned %q", got, warned)
	}
}

// Hooks of the administrator's are git's to run; what the master says that it knows
// is on record for them.
func TestMirrorPushWithOtherHooks(t *testing.T) {
	one := strings.Repeat("1", 40)
	for name, change := range map[string]func(w *world, dir string){
		"update":        func(w *world, dir string) { w.write(dir+"/hooks/update", "#!/bin/sh\n", 0o700) },
		"next":          func(w *world, dir string) { w.write(dir+"/hooks/post-receive.next", "#!/bin/sh\n", 0o700) },
		"hooksPath":     func(w *world, dir string) { w.git(dir, "config", "core.hooksPath", "/somewhere") },
		"not our links": func(w *world, dir string) { w.programs = "/elsewhere" },
	} {
		w := newWorld(t)
		dir, _ := w.slave()
		change(w, dir)
		var warned []string
		p := w.quickPush(dir, "sam", &warned)
		alone, err := p.Begin(t.Context(), []sendpack.Command{{Ref: "refs/heads/other", Old: one, New: w.oid}})
		if err != nil || alone {
			t.Errorf("%s: %v, %v", name, alone, err)
		}
		if !w.received(dir).Ours("refs/heads/other", one) {
			t.Errorf("%s: the old value is not on record", name)
		}
	}
}

func TestMirrorPushRefused(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	w.git(dir, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
	var warned []string
	for peer, command := range map[string]sendpack.Command{
		"gollum": {Ref: "refs/heads/main", Old: w.oid, New: zero},
		"":       {Ref: "refs/heads/main", Old: w.oid, New: zero},
		"sam":    {Ref: "refs/heads/alias", Old: w.oid, New: zero},
	} {
		if _, err := w.quickPush(dir, peer, &warned).Begin(t.Context(), []sendpack.Command{command}); err == nil {
			t.Errorf("%q may", peer)
		}
	}
	w.git(dir, "config", "gitolite.mirror.master", "frodo")
	if _, err := w.quickPush(dir, "sam", &warned).Begin(t.Context(), nil); err == nil {
		t.Error("a peer may push to its master")
	}
}
