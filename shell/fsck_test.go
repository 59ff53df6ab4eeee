package shell

import (
	"slices"
	"testing"
)

func TestFsckObjects(t *testing.T) {
	s := newTestServer(t, "[receive]\nfsck_objects = true\n")
	dir := s.bare("mine", "master=frodo", "slaves=sam", "redirectOK=true")
	sams := s.bare("sams", "master=sam")
	argv := []string{"git", "-c", "receive.fsckObjects=true", "-c", "transfer.hideRefs=refs/mirror"}
	s.session("git-receive-pack 'mine'").user(t, "alice").ran(t, append(argv, "receive-pack", "--", dir)...)
	s.session("USER=alice SOC=git-receive-pack 'mine'").peer(t, "sam").ran(t, append(argv, "receive-pack", "--", dir)...)
	s.session("git-receive-pack 'sams'").peer(t, "sam").ran(t, append(argv, "-c", "receive.denyNonFastForwards=false", "-c", "receive.denyDeletes=false",
		"-c", "receive.denyDeleteCurrent=ignore", "receive-pack", "--", sams)...)
	s.session("git-upload-pack 'mine'").user(t, "alice").ran(t, "git", "-c", "transfer.hideRefs=refs/mirror", "upload-pack", "--strict", "--", dir)

	// Another program that starts git finds it in the environment.
	s.Users.Exec = []string{"/usr/bin/gitolite-shell"}
	off := false
	s.Receive.FsckObjects = &off
	r := s.session("git-receive-pack 'mine'").user(t, "alice")
	for _, want := range []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=receive.fsckObjects", "GIT_CONFIG_VALUE_0=false"} {
		if !slices.Contains(r.env, want) {
			t.Errorf("%s is not in %q", want, r.env)
		}
	}
	s.Receive.FsckObjects = nil
	r = s.session("git-receive-pack 'mine'").user(t, "alice")
	if slices.Contains(r.env, "GIT_CONFIG_COUNT=0") {
		t.Errorf("%q", r.env)
	}
}
