package mirrorcfg

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrName is wrapped by the errors of the name checks.
var ErrName = errors.New("bad name")

// maxName keeps names far below what the file system and an ssh command take.
const maxName = 512

// isName reports whether a name is letters, digits and . _ @ + - and what else is
// given, with a letter or digit first, or second after an @. Each hook asks several times, and
// a regular expression would cost it more to compile than all else that it does with names.
func isName(name, also string) bool {
	name = strings.TrimPrefix(name, "@")
	for i := range len(name) {
		c := name[i]
		switch {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z':
		case i > 0 && (strings.IndexByte("._@+-", c) >= 0 || strings.IndexByte(also, c) >= 0):
		default:
			return false
		}
	}
	return name != ""
}

// CleanRepo checks the name of a repository as somebody typed or sent it and
// returns the form used everywhere else: without the one trailing ".git" that
// people may write.
func CleanRepo(name string) (string, error) {
	clean := strings.TrimSuffix(name, ".git")
	switch {
	case len(clean) > maxName:
		return "", fmt.Errorf("%w: repository name is %d bytes long, at most %d are allowed", ErrName, len(clean), maxName)
	case !isName(clean, "/"):
		return "", fmt.Errorf("%w: repository %.80q: use letters, digits and . _ @ + - /, with a letter or digit first", ErrName, name)
	case path.Clean(clean) != clean:
		return "", fmt.Errorf("%w: repository %.80q: write the path without //, . or .. elements and without a trailing /", ErrName, name)
	}
	for element := range strings.SplitSeq(clean, "/") {
		if strings.HasPrefix(element, PrivateDir) { // what is being made is called so, and is removed when it is found
			return "", fmt.Errorf("%w: repository %.80q: no element may begin with %s, which is ours", ErrName, name, PrivateDir)
		}
		if strings.HasSuffix(element, ".git") || len(element) > 200 {
			return "", fmt.Errorf("%w: repository %.80q: an element may not end in .git (the repository's own .git apart) nor be longer than 200 bytes", ErrName, name)
		}
	}
	return clean, nil
}

// CheckHost checks a server's or another peer's name.
func CheckHost(name string) error { return checkShort("host name", name) }

// CheckUser checks a user's name.
func CheckUser(name string) error { return checkShort("user name", name) }

func checkShort(what, name string) error {
	if len(name) > 128 || !isName(name, "") {
		return fmt.Errorf("%w: %s %.80q: use letters, digits and . _ @ + -, with a letter or digit first", ErrName, what, name)
	}
	return nil
}

// gitoliteAdmin is the repository that has gitolite's configuration and keys.
const gitoliteAdmin = "gitolite-admin"

// Governs reports whether who pushes to the repository of that name says who may do what on
// this server. Nobody but its administrator gives that name to a repository: where it is
// not yet here, or not any more, any master that may create others could take its place.
func (s *Server) Governs(name string) bool {
	return name != "" && (name == s.Map.Repository || s.Gitolite.Programs != "" && name == gitoliteAdmin)
}
