package shell

import (
	"strings"
	"testing"
)

func TestKeysImport(t *testing.T) {
	k := newTestKeys(t)
	_, sam := newTestKey(t)
	_, gollum := newTestKey(t)
	_, alice := newTestKey(t)
	before := "# mine\n" +
		`command="/opt/gl/gl-mirror-shell gollum",no-pty ` + gollum + "\n" +
		"# gitolite start\n" +
		`command="/usr/share/gitolite3/gitolite-shell alice",no-pty ` + alice + "\n" +
		`command="/usr/share/gitolite3/gitolite-shell server-sam",no-pty ` + sam + "\n" +
		"# gitolite end\n"
	k.put(before)
	importAll := func() (changes int) {
		t.Helper()
		peers, err := k.ForeignPeers()
		if err != nil || len(peers) != 2 {
			t.Fatalf("%+v, %v", peers, err)
		}
		for _, p := range peers {
			_, changed, err := k.Import(p)
			if err != nil {
				t.Fatal(err)
			}
			if changed {
				changes++
			}
		}
		return changes
	}
	if n := importAll(); n != 2 {
		t.Errorf("%d changes", n)
	}
	want := strings.Replace(before, `command="/opt/gl`, ourKeyLine("peer", "gollum", "gollum.pub", gollum)+"\n"+`command="/opt/gl`, 1)
	want = strings.Replace(want, "# gitolite start", ourKeyLine("peer", "sam", "sam.pub", sam)+"\n# gitolite start", 1)
	k.want(want)
	if n := importAll(); n != 0 {
		t.Errorf("again: %d changes", n)
	}
	k.want(want)
	peers, err := k.ForeignPeers()
	if err != nil || !peers[0].Ours || !peers[1].Ours {
		t.Errorf("%+v, %v", peers, err)
	}
}

func TestKeysImportRefuses(t *testing.T) {
	k := newTestKeys(t)
	_, key := newTestKey(t)
	for _, content := range []string{
		`command="/x/gitolite-shell server-" ` + key + "\n",
		`command="/x/gitolite-shell server-../a" ` + key + "\n",
		`command="/x/gl-mirror-shell -x" ` + key + "\n",
	} {
		k.put(content)
		if peers, err := k.ForeignPeers(); err == nil || len(peers) > 0 {
			t.Errorf("%s%+v, %v", content, peers, err)
		}
	}
	for _, content := range []string{
		`command="/x/gitolite-shell alice" ` + key + "\n",
		`command="/x/gitolite-shell servers-sam" ` + key + "\n",
		`# command="/x/gl-mirror-shell sam" ` + key + "\n",
		`command="/x/gl-mirror-shell sam",frobnicate ` + key + "\n",
	} {
		k.put(content)
		if peers, err := k.ForeignPeers(); err != nil || len(peers) > 0 {
			t.Errorf("%s%+v, %v", content, peers, err)
		}
	}
}
