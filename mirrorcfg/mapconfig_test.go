package mirrorcfg

import (
	"strings"
	"testing"
)

func TestMapConfig(t *testing.T) {
	for text, want := range map[string]MapConfig{
		"":                         {},
		`repository = "admin.git"`: {"admin", "mirror.toml", ""},
		"repository = \"a/b\"\nfile = \"conf/x.toml\"": {"a/b", "conf/x.toml", ""},
		"repository = \"a\"\nkeys = \"conf/keys\"":     {"a", "mirror.toml", "conf/keys"},
	} {
		s, err := Parse("x.toml", "hostname = \"frodo\"\n[map]\n"+text)
		if err != nil || s.Map != want {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
	for text, want := range map[string]string{
		`file = "x.toml"`:                          "map.file or map.keys is set, and map.repository is not",
		`repository = "../x"`:                      "map.repository: bad name",
		`branch = "main"`:                          "unknown key map.branch: the keys are repository, file",
		`keys = "keys"`:                            "map.file or map.keys is set",
		"repository = \"a\"\nkeys = \".\"":         "map.keys",
		"repository = \"a\"\nkeys = \"../keys\"":   "map.keys",
		"repository = \"a\"\nfile = \"../x.toml\"": "map.file",
		"repository = \"a\"\nfile = \"/x.toml\"":   "map.file",
		"repository = \"a\"\nfile = \"passwd\"":    "map.file",
	} {
		if _, err := Parse("x.toml", "hostname = \"frodo\"\n[map]\n"+text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
