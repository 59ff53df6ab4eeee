package hooks

import (
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// Without git's hooks, too, the master cannot touch what belongs to the slave.
func TestMirrorPushKeepsOutOfPrivateRefs(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	server, err := mirrorcfg.Load(w.config)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := mirrorcfg.LoadRepo(t.Context(), "ip1", git.Repo{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"refs/mirror", "refs/mirror/rescued/20261122T035557Z-1234abcd/refs/heads/main"} {
		p := &MirrorPush{Server: server, Config: cfg, Repo: git.Repo{Dir: dir}, Peer: "sam", Programs: w.programs,
			Warn: func(what string, err error) { t.Error(what, err) }}
		_, err := p.Begin(t.Context(), []sendpack.Command{{Ref: ref, Old: w.oid, New: zero}})
		if err == nil || !strings.Contains(err.Error(), "belongs to") {
			t.Errorf("%s: %v", ref, err)
		}
		p.Close()
	}
}
