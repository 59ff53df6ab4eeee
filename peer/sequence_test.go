package peer_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/refset"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

// A master that is rolled back with its record, and marked as restored, changes
// nothing at the slave before a person has looked, not even HEAD.
func TestRolledBackHead(t *testing.T) {
	w := newWorld(t, "1m")
	w.quick = true
	remember := w.everReceived()
	w.Commit("refs/heads/main")
	w.Commit("refs/heads/topic")
	w.MustSync()
	copyDir(t, w.Dir, w.Dir+".backup")
	// after the backup: rename main to trunk, go on
	w.Set("refs/heads/trunk", w.Refs()["refs/heads/main"])
	w.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	w.Delete("refs/heads/main")
	w.Commit("refs/heads/trunk")
	w.MustSync()
	remember()
	headBefore := w.Copy.Head()
	refsBefore := w.Copy.Refs()
	if err := errors.Join(os.RemoveAll(w.Dir), os.Rename(w.Dir+".backup", w.Dir)); err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(filepath.Join(w.Dir, "mirror-shell", "restored"), nil, 0o600)
	w.verbs()
	_, said, err := w.Sync()
	t.Logf("verbs %s\nerr %v\nsaid %s", w.verbs(), err, said)
	if now := w.Copy.Head(); now != headBefore {
		t.Errorf("held, yet HEAD of the slave went from %s to %s", headBefore, now)
	}
	w.CheckRefs(refsBefore)
	// somebody goes on in topic, unnoticed
	w.Commit("refs/heads/topic")
	_, _, err = w.Sync()
	t.Logf("err %v", err)
	if now := w.Copy.Refs(); now["refs/heads/topic"] != refsBefore["refs/heads/topic"] {
		t.Errorf("held and marked restored, yet topic of the slave was changed")
	}
}

// A push that was cut off, or a ref that was refused, does not make all later pushes slow.
func TestNeverSettled(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"tag whose push was cut off after it was applied": func(w *world) {
			w.Commit("refs/tags/v1")
			w.wrap = func(ctx context.Context, verb string, s *stream) {
				if verb == "mirror-push" || verb == "git-receive-pack" {
					r := s.Reader
					s.Reader = readerFunc(func(p []byte) (int, error) {
						n, err := r.Read(p)
						if strings.Contains(string(p[:n]), "done ") {
							return 0, io.ErrUnexpectedEOF
						}
						if verb == "git-receive-pack" {
							return 0, io.ErrUnexpectedEOF
						}
						return n, err
					})
				}
			}
			_, _, err := w.Sync()
			w.Logf("%v", err)
			w.wrap = nil
			w.verbs()
			w.MustSync()
		},
		"branch that was refused, and deleted": func(w *world) {
			w.copy.Hook("update", "#!/bin/sh\ncase $1 in refs/heads/bad) exit 1;; esac\n")
			w.Commit("refs/heads/bad")
			_, _, err := w.Sync()
			w.Logf("%v", err)
			w.Delete("refs/heads/bad")
			w.MustSync()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "1m")
			w.quick = true
			w.Commit("refs/heads/main")
			w.MustSync()
			w.Commit("refs/heads/main")
			w.verbs()
			w.MustSync()
			if v := w.verbs(); v != "mirror-push" {
				t.Fatalf("control: %s", v)
			}
			prepare(w)
			w.verbs()
			for i := range 5 {
				w.Commit("refs/heads/main")
				w.MustSync()
				t.Logf("push %d after: %s", i, w.verbs())
			}
			w.Commit("refs/heads/main")
			w.MustSync()
			if v := w.verbs(); v != "mirror-push" {
				t.Errorf("still %s", v)
			}
			log, _ := refset.Open(refset.Path(w.Dir, peerName))
			_, settled := log.Guess()
			t.Logf("settled %v", settled)
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A hold is as old as its first try.
func TestHoldTime(t *testing.T) {
	w := newWorld(t, "1m")
	w.quick = true
	remember := w.everReceived()
	w.Commit("refs/heads/main")
	w.MustSync()
	copyDir(t, w.Dir, w.Dir+".backup")
	w.Commit("refs/heads/main")
	w.MustSync()
	remember()
	if err := errors.Join(os.RemoveAll(w.Dir), os.Rename(w.Dir+".backup", w.Dir)); err != nil {
		t.Fatal(err)
	}
	w.held("rolled back")
	f := filepath.Join(w.Dir, "mirror-shell", "peers", "sam.held")
	a, _ := os.ReadFile(f)
	time.Sleep(1100 * time.Millisecond)
	w.held("rolled back")
	b, _ := os.ReadFile(f)
	if string(a) != string(b) {
		t.Errorf("the hold is new:\n%s%s", a, b)
	}
}

// An approval is for once, also when we die before it is used up.
func TestApprovalTwice(t *testing.T) {
	w := newWorld(t, "1m")
	w.quick = true
	w.received = func(string, string) bool { return true }
	w.Commit("refs/heads/main")
	for _, r := range []string{"a", "b", "c", "d"} {
		w.Commit("refs/heads/" + r)
	}
	w.MustSync()
	full := w.Refs()
	for _, r := range []string{"a", "b", "c", "d"} {
		w.Delete("refs/heads/" + r)
	}
	w.held("4 of 5")
	w.mustApprove()
	approved := filepath.Join(w.Dir, "mirror-shell", "peers", "sam.approved")
	keep, err := os.ReadFile(approved)
	if err != nil {
		t.Fatal(err)
	}
	out := w.MustSync()
	// killed between the push and useUp: the file is still there
	os.WriteFile(approved, keep, 0o600)
	if err := w.peers.Confirm(context.Background(), peertest.Repository, peerName, out.Digest, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(approved); err == nil {
		t.Error("the approval outlives a comparison that found the copy equal")
	}
	// a slave restored to that very state
	w.copy.SetAll(full)
	_, _, err = w.Sync()
	if err == nil {
		t.Errorf("the same approval let it through twice")
	}
	t.Log(err)
}

// What was said of one copy of a restored repository is not said of another.
func TestApproveOtherPeer(t *testing.T) {
	w := newWorld(t, "1m")
	w.received = func(string, string) bool { return true }
	w.Commit("refs/heads/main")
	w.Commit("refs/heads/x")
	w.MustSync()
	// gollum, a second copy by the same transport (same repo stands for it)
	gollum, err := w.peers.Open("gollum")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gollum.Sync(context.Background(), w.Source(), io.Discard); err != nil {
		t.Fatal(err)
	}
	x := w.Refs()["refs/heads/x"]
	// refs are restored in place, x is newer than the backup, the records are not rolled back
	w.Delete("refs/heads/x")
	os.WriteFile(peer.RestoredMark(w.Dir), nil, 0o600)
	if _, err := gollum.Sync(context.Background(), w.Source(), io.Discard); !errors.Is(err, peer.ErrHeld) {
		t.Fatalf("gollum: %v", err)
	}
	w.held("restored")
	w.mustApprove() // sam only
	_, err = gollum.Sync(context.Background(), w.Source(), io.Discard)
	t.Logf("gollum after sam was approved: %v; x there: %v", err, w.copy.Refs()["refs/heads/x"] == x)
	if err == nil {
		t.Error("gollum was let through by the approval for sam")
	}
}
