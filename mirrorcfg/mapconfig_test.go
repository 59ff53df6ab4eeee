package mirrorcfg

import (
	"strings"
	"testing"
)

func TestMapConfig(t *testing.T) {
	for text, want := range map[string]MapConfig{
		"":                         {},
		`repository = "admin.git"`: {"admin", "mirror.toml"},
		"repository = \"a/b\"\nfile = \"conf/x.toml\"": {"a/b", "conf/x.toml"},
	} {
		s, err := Parse("x.toml", "hostname = \"frodo\"\n[map]\n"+text)
		if err != nil || s.Map != want {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
	for text, want := range map[string]string{
		`file = "x.toml"`:                          "map.file is set, and map.repository is not",
		`repository = "../x"`:                      "map.repository: bad name",
		`branch = "main"`:                          "unknown key map.branch: the keys are repository, file",
		"repository = \"a\"\nfile = \"../x.toml\"": "map.file",
		"repository = \"a\"\nfile = \"/x.toml\"":   "map.file",
		"repository = \"a\"\nfile = \"passwd\"":    "map.file",
	} {
		if _, err := Parse("x.toml", "hostname = \"frodo\"\n[map]\n"+text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
