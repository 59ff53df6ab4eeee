package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// check refuses a manifest that a restore could be led astray by.
func (m *Manifest) check() error {
	if clean, err := mirrorcfg.CleanRepo(m.Repository); err != nil || clean != m.Repository {
		return fmt.Errorf("repository %q is no repository's name", m.Repository)
	}
	if m.Grace < 0 || m.Grace > int64(maxGrace/time.Second) {
		return fmt.Errorf("grace period of %d seconds", m.Grace)
	}
	if m.Retain < 0 || m.Retain > int64(maxRetain/time.Second) {
		return fmt.Errorf("retention of %d seconds", m.Retain)
	}
	if m.SealedFor != "" && !isHex(m.SealedFor, 32) {
		return fmt.Errorf("recipients %q", m.SealedFor)
	}
	digits := map[string]int{"sha1": 40, "sha256": 64}[m.ObjectFormat]
	if digits == 0 {
		return fmt.Errorf("object format %q is unknown", m.ObjectFormat)
	}
	return errors.Join(m.checkRefs(digits), m.checkPacks(digits), m.checkFiles())
}

func (m *Manifest) checkRefs(digits int) error {
	switch {
	case m.Head != "" && m.Detached != "" || m.Head == "" && m.Detached == "":
		return errors.New("HEAD has to be a ref or an object id, and one of them only")
	case m.Head != "" && !isRef(m.Head):
		return fmt.Errorf("HEAD points to %q, which is no ref's name", m.Head)
	case m.Detached != "" && !isHex(m.Detached, digits):
		return fmt.Errorf("HEAD is %q, which is no object id", m.Detached)
	}
	for name, oid := range m.Refs {
		if !isRef(name) || !isHex(oid, digits) {
			return fmt.Errorf("ref %q with value %q", name, oid)
		}
	}
	for name, target := range m.SymRefs {
		if !isRef(name) || !isTarget(target) {
			return fmt.Errorf("symbolic ref %q to %q", name, target)
		}
	}
	if m.Format < 2 && m.looseSymRefs() {
		return fmt.Errorf("symbolic refs that a manifest of format %d cannot have", m.Format)
	}
	return nil
}

// isTarget reports whether a symbolic ref may point there.
func isTarget(name string) bool { return isRef(name) || name == "HEAD" }

func (m *Manifest) checkPacks(digits int) error {
	for _, p := range m.Packs {
		if !packName.MatchString(p.Name) || len(p.Name) != len("pack-")+digits {
			return fmt.Errorf("pack %q is not named as git names packs", p.Name)
		}
		for _, o := range []Object{p.Pack, p.Index} {
			if err := m.checkObject(o); err != nil {
				return fmt.Errorf("pack %q: %w", p.Name, err)
			}
		}
	}
	return nil
}

func (m *Manifest) checkFiles() error {
	paths := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		if paths[f.Path] {
			return fmt.Errorf("file %q is there twice", f.Path)
		}
		paths[f.Path] = true
		if !keepable(f.Path) {
			return fmt.Errorf("file %q is not one that a backup keeps", f.Path)
		}
		if f.Mode != keptMode(fs.FileMode(f.Mode)) {
			return fmt.Errorf("file %q: mode %o is none that a backup keeps", f.Path, f.Mode)
		}
		if err := m.checkObject(f.Object); err != nil {
			return fmt.Errorf("file %q: %w", f.Path, err)
		}
	}
	for _, l := range m.LFS {
		if !sha256Hex.MatchString(l.OID) || l.SHA256 != l.OID {
			return fmt.Errorf("LFS object %q: its id is not its SHA-256", l.OID)
		}
		if err := m.checkObject(l.Object); err != nil {
			return fmt.Errorf("LFS object %q: %w", l.OID, err)
		}
	}
	return nil
}

func (m *Manifest) checkObject(o Object) error {
	size, sum := o.Stored()
	switch {
	case !strings.HasPrefix(o.Key, dataOf(m.Repository)) || strings.Count(o.Key, "/") != strings.Count(dataOf(m.Repository), "/"):
		return fmt.Errorf("key %q is not below %s", o.Key, dataOf(m.Repository))
	case o.Size < 0 || size < 0 || !sha256Hex.MatchString(o.SHA256) || !sha256Hex.MatchString(sum):
		return fmt.Errorf("key %q: size or SHA-256 is missing", o.Key)
	case o.Encoding != "" && o.Encoding != encodingZstd && o.Encoding != encodingAge && o.Encoding != encodingBoth:
		return fmt.Errorf("key %q: encoding %q is unknown", o.Key, o.Encoding)
	}
	return nil
}

// keepable reports whether a path in a repository's directory may be in a snapshot as a
// file: not what git manages itself, what is only of this machine, or what is half written.
func keepable(name string) bool {
	if !nameable(name) || name == "." {
		return false
	}
	first, _, _ := strings.Cut(name, "/")
	switch first {
	case "objects", "refs", "packed-refs", "HEAD", "mirror-shell", "worktrees", "logs", "lfs", "reftable", "modules", "gc.pid", "shallow",
		"commondir", "gitdir", "config.worktree": // these say that git should look elsewhere
		return false
	}
	return !strings.HasSuffix(name, ".lock") && !strings.HasPrefix(path.Base(name), ".mirror-shell")
}

// nameable reports whether a manifest can hold a path: it has to mean the same on every file system, and is UTF-8 text in JSON.
func nameable(name string) bool { return fs.ValidPath(name) && !strings.ContainsAny(name, "\\\x00\n") }

// isRef reports whether name is a ref's, and below refs/: another one would be a file among
// those that git and its hooks live in.
func isRef(name string) bool { return strings.HasPrefix(name, "refs/") && sendpack.ValidRef(name) }

// isHex reports whether s is n lower-case hexadecimal digits.
func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}
