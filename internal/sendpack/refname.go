package sendpack

import "strings"

// ValidRef reports whether name is well formed as a full ref name, by the rules
// of git check-ref-format: at least two components, none of them empty, beginning
// with a dot or ending in ".lock"; no "..", no "@{", no dot at the end; no
// control character, space, or any of ~ ^ : ? * [ \. Bytes above 0x7f are allowed.
func ValidRef(name string) bool {
	if !strings.Contains(name, "/") || strings.HasSuffix(name, ".") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	for i := range len(name) {
		if !refByte(name[i]) {
			return false
		}
	}
	return !strings.Contains(name, "..") && !strings.Contains(name, "@{")
}

func refByte(c byte) bool {
	switch c {
	case 0x7f, '~', '^', ':', '?', '*', '[', '\\':
		return false
	}
	return c > ' '
}

// oidLen is the number of hex digits of an object id.
func oidLen(format string) (n int, ok bool) {
	switch format {
	case SHA1:
		return 40, true
	case SHA256:
		return 64, true
	}
	return 0, false
}

// validOID reports whether s is an object id of n hex digits.
func validOID(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isZero(oid string) bool { return strings.Trim(oid, "0") == "" }
