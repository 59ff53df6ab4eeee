package mirrorcfg

import (
	"strings"
	"testing"
	"time"
)

func TestBackupDefaults(t *testing.T) {
	t.Setenv("HOME", "/home/git")
	s, err := Parse("x.toml", `hostname = "frodo"
[peer.vault]
kind = "backup"
url = "s3://git-backups"
lock = "24h"
bytes_per_second = "1.5MiB"
[peer.attic]
kind = "backup"
url = "~/attic"
include = []
identity_file = "~/key"
`)
	if err != nil {
		t.Fatal(err)
	}
	vault, attic := s.Peers["vault"], s.Peers["attic"]
	if vault.LockMode != "governance" || time.Duration(vault.Grace) != 24*time.Hour || vault.BytesPerSecond != 3<<19 || vault.Include != nil {
		t.Errorf("%+v", vault)
	}
	if attic.URL != "/home/git/attic" || attic.IdentityFile != "/home/git/key" || attic.LockMode != "" || attic.Include == nil {
		t.Errorf("%+v", attic)
	}
}

// An error names the file, the peer, the key, and what would be right; and never a secret.
func TestBackupMistakes(t *testing.T) {
	tests := []struct{ text, key, hint string }{
		{`url = ""`, "url", "needs a place"},
		{`url = "relative"`, "url", "begin it with /"},
		{`url = "s3://me:hunter2@bucket"`, "url", "credentials_file"},
		{`url = "gs://bucket"`, "url", "s3://"},
		{`url = "s3://Bucket_"`, "url", "s3://"},
		{`url = "file://host/x"`, "url", "file:///"},
		{`credentials_file = "x"`, "credentials_file", "full path"},
		{`lock = "30d"`, "30d", "duration"},
		{`lock = "1m"`, "lock", "720h"},
		{`lock = "-2h"`, "lock", "720h"},
		{`lock_mode = "governance"`, "lock_mode", "lock is not"},
		{"lock = \"2h\"\nlock_mode = \"legal\"", "lock_mode", "compliance"},
		{"lock = \"2h\"\nurl = \"/srv/x\"", "lock", "s3://"},
		{`recipients = ["AGE-SECRET-KEY-HUNTER2"]`, "recipients", "age1"},
		{`recipients = ["alice"]`, "recipients", "alice"},
		{`recipients = "age1"`, "recipients", ""},
		{`identity_file = "x"`, "identity_file", "full path"},
		{`include = ["["]`, "include", "glob"},
		{`exclude = [""]`, "exclude", "glob"},
		{`schedule = "hourly"`, "schedule", "@hourly"},
		{`schedule = "* * * *"`, "schedule", "five fields"},
		{`schedule = "0 0 * * *; rm"`, "schedule", "five fields"},
		{`bytes_per_second = "10 apples"`, "10 apples", "10MB"},
		{`bytes_per_second = -1`, "bytes_per_second", "10MB"},
		{`bytes_per_second = 10`, "bytes_per_second", "10MB"},
		{`bytes_per_second = true`, "bytes_per_second", "10MB"},
		{`requests_per_second = -1`, "requests_per_second", "no limit"},
		{`concurrency = 1000`, "concurrency", "256"},
		{`grace = "30m"`, "grace", "1h"},
		{`keep_last = -1`, "keep_last", "how many"},
		{`keep_yearly = -1`, "keep_yearly", "how many"},
		{`keep_within = "-1h"`, "keep_within", "168h"},
		{`keep_forever = true`, "keep_forever", "keep_yearly"},
		{`prune = true`, "prune", "keep_last"},
	}
	for _, tt := range tests {
		text := tt.text
		if !strings.Contains(text, "url =") {
			text = "url = \"s3://bucket\"\n" + text
		}
		_, err := Parse("/etc/x.toml", "hostname = \"f\"\n[peer.vault]\nkind = \"backup\"\n"+text)
		if err == nil {
			t.Errorf("%q is accepted", tt.text)
			continue
		}
		for _, want := range []string{"/etc/x.toml", tt.key, tt.hint} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: error %q does not say %q", tt.text, err, want)
			}
		}
		if strings.Contains(strings.ToLower(err.Error()), "hunter2") {
			t.Errorf("a secret is in the message %q", err)
		}
	}
}

// A key of a backup in the section of an ssh peer would have no effect.
func TestSSHPeerHasNoBackupKeys(t *testing.T) {
	for _, key := range backupKeys {
		for _, kind := range []string{"", "kind = \"ssh\"\n"} {
			value := `"1h"`
			switch {
			case strings.HasPrefix(key, "keep_") && key != "keep_within" || strings.HasSuffix(key, "_per_second") || key == "concurrency":
				value = "0"
			case key == "recipients" || key == "include" || key == "exclude":
				value = "[]"
			}
			_, err := Parse("x.toml", "hostname = \"f\"\n[peer.sam]\n"+kind+key+" = "+value)
			if err == nil || !strings.Contains(err.Error(), "peer.sam."+key) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("%s%s: %v", kind, key, err)
			}
		}
	}
}

func TestParseByteSize(t *testing.T) {
	for text, want := range map[string]ByteSize{"0": 0, "1000": 1000, "10MB": 1e7, "10mb": 1e7, "10 MB": 1e7, "1.5KiB": 1536, "2GiB": 2 << 30, "1TB": 1e12, "7B": 7} {
		if got, err := ParseByteSize(text); err != nil || got != want {
			t.Errorf("%q = %d, %v; want %d", text, got, err, want)
		}
	}
}

func FuzzParseByteSize(f *testing.F) {
	for _, s := range []string{"10MB", "1.5KiB", "", "-1", "9e9", "999999999999999TB", "1i", "1iB", "1K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseByteSize(s); err == nil && n < 0 || err != nil && n != 0 {
			t.Errorf("%q = %d, %v", s, n, err)
		}
	})
}
