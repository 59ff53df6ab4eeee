package peer_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/peer/peertest"
)

// What the peer does not take stays as it was, the other refs go on, and the
// error names ref and reason.
func TestPeerRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		set     func(*peertest.Repo)
		error   []string
		refused []string // refs that keep their values
	}{
		{"pre-receive", func(r *peertest.Repo) { r.Hook("pre-receive", "echo not today >&2; exit 1") },
			[]string{"refused 4 of 4 refs", "pre-receive hook declined"}, []string{"refs/heads/main", "refs/heads/topic", "refs/heads/gone", "refs/secret/s"}},
		{"update", func(r *peertest.Repo) { r.Hook("update", `test "$1" != refs/heads/topic`) },
			[]string{"refused 1 of 4 refs: refs/heads/topic (hook declined)"}, []string{"refs/heads/topic"}},
		{"hidden", func(r *peertest.Repo) { r.Git("config", "receive.hideRefs", "refs/secret") },
			[]string{"refused 1 of 4 refs: refs/secret/s (", "hidden"}, []string{"refs/secret/s"}},
		{"denyDeletes", func(r *peertest.Repo) { r.Git("config", "receive.denyDeletes", "true") },
			[]string{"refused 1 of 4 refs: refs/heads/gone (deletion prohibited)"}, []string{"refs/heads/gone"}},
		{"lock left behind", func(r *peertest.Repo) { r.Write("refs/heads/topic.lock", "") },
			[]string{"refused 1 of 4 refs: refs/heads/topic (", "failed to update ref"}, []string{"refs/heads/topic"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, transport := newFixture(t, time.Minute)
			f.Commit("refs/heads/main")
			f.Commit("refs/heads/topic")
			f.Commit("refs/heads/gone")
			f.MustSync()
			before := f.Copy.Refs()
			f.Commit("refs/heads/main")
			f.Commit("refs/heads/topic")
			f.Commit("refs/secret/s")
			f.Delete("refs/heads/gone")
			want := f.Refs()
			for _, ref := range c.refused {
				delete(want, ref)
				if before[ref] != "" {
					want[ref] = before[ref]
				}
			}
			c.set(f.Copy.Repo)
			for range 2 {
				transport.verbs()
				f.SyncFails(c.error...)
				f.CheckRefs(want)
				c.error[0] = strings.NewReplacer("1 of 4", "1 of 1").Replace(c.error[0])
			}
			if verbs := transport.verbs(); verbs != "git-receive-pack" {
				t.Errorf("commands sent: %s", verbs)
			}
		})
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	f, _ := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	f.MustSync()
	f.Commit("refs/heads/main")
	f.Copy.Repo.Git("config", "receive.maxInputSize", "10") // the pack is not taken
	f.SyncFails("sam could not store the objects")
	f.Copy.Repo.Git("config", "--unset", "receive.maxInputSize")
	f.MustSync()
}

// A peer whose git has no offset deltas, and one that shares objects with us.
func TestPeerWithout(t *testing.T) {
	t.Parallel()
	f, _ := newFixture(t, time.Minute)
	f.Copy.Repo.Git("config", "repack.useDeltaBaseOffset", "false")
	f.Copy.Repo.Write("objects/info/alternates", f.Dir+"/objects\n")
	f.Commit("refs/heads/main")
	f.MustSync()
	f.Fill(50)
	f.MustSync()
}

// The record cannot be written: nothing is sent.
func TestNoRecordNoPush(t *testing.T) {
	t.Parallel()
	f, _ := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	dir := filepath.Dir(f.Copy.Record(f.Dir))
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.SyncFails("record")
	f.CheckRefs(map[string]string{})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	f.MustSync()
}
