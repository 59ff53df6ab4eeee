package shell

import (
	"runtime/debug"
	"strings"
)

// Version is what git describe said of the source, set by the linker (see
// Makefile); "" for a program that go build made by itself.
var Version string

// nextVersion is what is being worked on.
const nextVersion = "0.1.0"

// ProgramVersion is this program's version: what the linker was told, else the commit
// that go build found, else only that it is on the way to a version. It reads what is in
// memory already, and is not for the start of a session.
func ProgramVersion() string {
	switch {
	case strings.Contains(Version, "."): // v0.1.0, v0.1.0-5-g0123456
		return strings.TrimPrefix(Version, "v")
	case Version != "": // without a tag git describe knows the commit only
		return nextVersion + "-dev+" + Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nextVersion + "-dev"
	}
	return versionOf(info.Settings)
}

// versionOf puts a version together of what go build noted.
func versionOf(settings []debug.BuildSetting) string {
	set := map[string]string{}
	for _, s := range settings {
		set[s.Key] = s.Value
	}
	version := nextVersion + "-dev"
	if revision := set["vcs.revision"]; revision != "" {
		version += "+" + revision[:min(len(revision), 12)]
		if set["vcs.modified"] == "true" {
			version += "-dirty"
		}
	}
	return version
}
