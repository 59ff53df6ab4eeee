package shell

import (
	"runtime/debug"
	"testing"
)

func TestVersion(t *testing.T) {
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	for _, c := range []struct {
		settings []debug.BuildSetting
		want     string
	}{
		{nil, "0.1.0-dev"},
		{[]debug.BuildSetting{{Key: "vcs", Value: "git"}, revision, {Key: "vcs.modified", Value: "false"}}, "0.1.0-dev+0123456789ab"},
		{[]debug.BuildSetting{revision, {Key: "vcs.modified", Value: "true"}}, "0.1.0-dev+0123456789ab-dirty"},
		{[]debug.BuildSetting{{Key: "vcs.revision", Value: "01"}}, "0.1.0-dev+01"},
	} {
		if got := versionOf(c.settings); got != c.want {
			t.Errorf("%v: %s, want %s", c.settings, got, c.want)
		}
	}
	old := Version
	defer func() { Version = old }()
	for linked, want := range map[string]string{"v1.2.3-4-g5678-dirty": "1.2.3-4-g5678-dirty", "1.2.3": "1.2.3", "5615be1-dirty": "0.1.0-dev+5615be1-dirty"} {
		if Version = linked; ProgramVersion() != want {
			t.Errorf("%s: %s, want %s", linked, ProgramVersion(), want)
		}
	}
}
