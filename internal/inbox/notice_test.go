package inbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func rescued(repository string) Notice {
	return Notice{Kind: NoticeRescued, Repository: repository, Peer: "sam", Refs: []string{"refs/mirror/rescued/x/refs/heads/main"}, Time: time.Unix(1_800_000_000, 5)}
}

func takeNotices(t *testing.T, dir string) (taken []Notice, err error) {
	t.Helper()
	err = TakeNotices(dir, func(n []Notice) error { taken = n; return nil })
	return taken, err
}

func TestNoticeRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state") // made when it is missing
	if HasNotices(dir) {
		t.Error("a notice in nothing")
	}
	want := []Notice{rescued("a/ip1"), {Kind: "note", Time: time.Unix(1_800_000_001, 0)}}
	for _, n := range want {
		if err := PutNotice(dir, n); err != nil {
			t.Fatal(err)
		}
	}
	failure := errors.New("full")
	if err := TakeNotices(dir, func([]Notice) error { return failure }); !errors.Is(err, failure) || !HasNotices(dir) {
		t.Errorf("a commit that failed: %v", err)
	}
	got, err := takeNotices(t, dir)
	if err != nil || len(got) != 2 || got[0].ID == got[1].ID || len(got[0].ID) != 8 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range got {
		got[i].ID, want[i].Time = "", want[i].Time.UTC()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if HasNotices(dir) {
		t.Error("they are still there")
	}
}

func TestNoticeRefused(t *testing.T) {
	for _, change := range []func(*Notice){
		func(n *Notice) { n.Kind = "" },
		func(n *Notice) { n.Kind = "Rescued!" },
		func(n *Notice) { n.Repository = "a\nb" },
		func(n *Notice) { n.Peer = "\xff" },
		func(n *Notice) { n.Refs = []string{"refs/x", ""} },
	} {
		n := rescued("ip1")
		change(&n)
		if err := PutNotice(t.TempDir(), n); err == nil {
			t.Errorf("%+v is accepted", n)
		}
	}
	dir := t.TempDir()
	n := rescued("ip1")
	n.Refs, n.Time = make([]string, 5000), time.Time{}
	for i := range n.Refs {
		n.Refs[i] = fmt.Sprintf("refs/heads/%d", i)
	}
	if err := PutNotice(dir, n); err != nil {
		t.Fatal(err)
	}
	got, err := takeNotices(t, dir)
	if err != nil || len(got) != 1 || len(got[0].Refs) != maxNoticeRefs || time.Since(got[0].Time) > time.Hour {
		t.Errorf("%v, %v", got, err)
	}
}

// A file that is none does not hold up the others, and is kept.
func TestNoticeBad(t *testing.T) {
	dir := t.TempDir()
	if err := PutNotice(dir, rescued("ip1")); err != nil {
		t.Fatal(err)
	}
	name := "0000000000000000001-00000001.json"
	if err := os.WriteFile(filepath.Join(dir, "notices", name), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "notices", "0000000000000000002-00000001.json")); err != nil {
		t.Fatal(err)
	}
	got, err := takeNotices(t, dir)
	if !errors.Is(err, ErrBad) || len(got) != 1 || !strings.Contains(err.Error(), filepath.Join(dir, "notices/bad", name)) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := takeNotices(t, dir); err != nil || got != nil {
		t.Errorf("again: %v, %v", got, err)
	}
	if bad, _ := listFiles(filepath.Join(dir, "notices/bad")); len(bad) != 2 {
		t.Errorf("kept %q", bad)
	}
}

func TestBehind(t *testing.T) {
	dir := t.TempDir()
	since := time.Date(2026, 11, 19, 1, 2, 3, 0, time.UTC)
	ip1sam := Lack{"a/ip1", "sam", since, "disk full"}
	ip1gollum := Lack{"a/ip1", "gollum", since, ""}
	ip2sam := Lack{"ip2", "sam", since, "held"}
	sam := Lack{"", "sam", since, "connection refused"}
	set := func(lacks ...Lack) {
		t.Helper()
		if err := SetBehind(dir, lacks); err != nil {
			t.Fatal(err)
		}
	}
	check := func(repository, peers string, want ...Lack) {
		t.Helper()
		got, err := Behind(dir, repository, strings.Fields(peers))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v, %s", repository, err, diff)
		}
	}
	set()
	check("a/ip1", "sam gollum")
	set(ip1sam, ip1gollum, sam, ip2sam)
	check("a/ip1", "sam gollum", ip1sam, ip1gollum)
	check("ip2", "sam gollum", ip2sam)
	check("ip3", "sam gollum", sam) // nothing of it is missing there yet, but the push will be
	check("ip3", "gollum")

	before, _ := os.Stat(filepath.Join(behindDir(dir), ip2sam.key()))
	set(ip1gollum, ip2sam)
	after, _ := os.Stat(filepath.Join(behindDir(dir), ip2sam.key()))
	if !os.SameFile(before, after) {
		t.Error("a file that did not change was written again")
	}
	check("a/ip1", "sam gollum", ip1gollum)
	check("ip3", "sam")
	if err := os.WriteFile(filepath.Join(behindDir(dir), ip2sam.key()), nil, 0o600); err != nil { // a power cut
		t.Fatal(err)
	}
	if _, err := Behind(dir, "ip2", nil); err == nil {
		t.Error("an empty file is no error")
	}
	set(ip2sam)
	check("ip2", "", ip2sam)
	set()
	if _, err := os.Stat(behindDir(dir)); !os.IsNotExist(err) {
		t.Errorf("the directory stays: %v", err)
	}
}

func TestLackText(t *testing.T) {
	now := time.Date(2026, 11, 22, 3, 55, 57, 0, time.UTC)
	for want, l := range map[string]Lack{
		"sam has not had ip1 since 2026-11-19 (3 days): disk full":         {"ip1", "sam", now.Add(-73 * time.Hour), "disk full"},
		"sam has not had ip1 since 2026-11-21 04:55 UTC (23 hours): x":     {"ip1", "sam", now.Add(-23 * time.Hour), "x"},
		"sam has not been reached since 2026-11-22 02:45 UTC (70 minutes)": {"", "sam", now.Add(-70*time.Minute - 57*time.Second), ""},
		"sam has not had ip1 since 2026-11-22 03:56 UTC (0 seconds)":       {"ip1", "sam", now.Add(9 * time.Second), ""},
	} {
		if got := l.Text(now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
