package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// nextVersion is what is being worked on while there is no tag.
const nextVersion = "0.1.0"

var (
	tagged   = regexp.MustCompile(`^v?([0-9]+(?:\.[0-9]+)*)(?:-(rc|alpha|beta)\.?([0-9]+))?(?:-([0-9]+)-(g[0-9a-f]+))?(-dirty)?$`)
	commitID = regexp.MustCompile(`^([0-9a-f]{7,64})(-dirty)?$`)
)

// debianVersion makes the package's version of what git describe said, such that
// dpkg puts them into the right order: a candidate before its release ("~"), commits
// after a tag behind it ("+"), and what comes before the first tag before that.
//
//	v1.2.3             1.2.3
//	v1.2.3-rc1         1.2.3~rc1
//	v1.2.3-5-g0123456  1.2.3+5.g0123456
//	0123456            0.1.0~git20261122105703.0123456
//
// A source tree with changes has +dirty at its end.
func debianVersion(described string, when time.Time) string {
	version := nextVersion + "~git" + when.Format("20060102150405")
	dirty := ""
	if m := tagged.FindStringSubmatch(described); m != nil && strings.Contains(m[1], ".") {
		version, dirty = m[1], m[6]
		if m[2] != "" {
			version += "~" + m[2] + m[3]
		}
		if m[4] != "" {
			version += fmt.Sprintf("+%s.%s", m[4], m[5])
		}
	} else if m := commitID.FindStringSubmatch(described); m != nil {
		version, dirty = version+"."+m[1], m[2]
	}
	if dirty != "" {
		version += "+dirty"
	}
	return version
}
