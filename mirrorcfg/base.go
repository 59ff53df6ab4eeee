package mirrorcfg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mirror-shell/internal/git"
)

// ErrNoRepo is wrapped when a repository is not on this server.
var ErrNoRepo error = noRepo{}

// noRepo is fs.ErrNotExist in words that fit.
type noRepo struct{}

func (noRepo) Error() string        { return "no such repository" }
func (noRepo) Is(target error) bool { return target == fs.ErrNotExist }

// PrivateDir is ours, below repo_base, and no repository's name (see package repos).
const PrivateDir = ".mirror-shell"

// Base returns repo_base with its symlinks resolved.
func (s *Server) Base() (string, error) {
	dir, err := filepath.EvalSymlinks(s.RepoBase)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("repo_base %s does not exist: create it, or correct repo_base in %s", s.RepoBase, s.File)
	}
	if err != nil {
		return "", fmt.Errorf("repo_base: %w", err)
	}
	return dir, nil
}

// Find returns the repository of that name. The name is checked (ErrName), the
// directory must be a repository (ErrNoRepo) and, with symlinks resolved, lie
// inside repo_base: a link out of it is refused, whoever made it.
func (s *Server) Find(name string) (clean string, repo git.Repo, err error) {
	clean, err = CleanRepo(name)
	if err != nil {
		return "", repo, err
	}
	base, err := s.Base()
	if err != nil {
		return "", repo, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(base, clean+".git"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", repo, fmt.Errorf("%w: %s", ErrNoRepo, clean)
	case err != nil:
		return "", repo, fmt.Errorf("repository %s: %w", clean, err)
	case !strings.HasPrefix(dir, base+"/"):
		return "", repo, fmt.Errorf("%w: %s is a link that leaves repo_base", ErrName, clean)
	case !git.IsRepository(dir) && unreadable(dir):
		return "", repo, fmt.Errorf("%w: %s may not be read by the account that this runs as: see whose it is", ErrNoRepo, clean)
	case !git.IsRepository(dir):
		return "", repo, fmt.Errorf("%w: %s is not a git repository", ErrNoRepo, clean)
	}
	return clean, git.Repo{Dir: dir}, nil
}

// unreadable reports whether a directory does not let us in: somebody made the repository as root, for example.
func unreadable(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, "HEAD"))
	return errors.Is(err, fs.ErrPermission)
}

// OpenRepo finds a repository and loads its configuration.
func (s *Server) OpenRepo(ctx context.Context, name string) (*Repo, git.Repo, error) {
	clean, repo, err := s.Find(name)
	if err != nil {
		return nil, repo, err
	}
	cfg, err := LoadRepo(ctx, clean, repo)
	return cfg, repo, err
}

// NameOf returns the name of the repository in dir, from its place under
// repo_base.
func (s *Server) NameOf(dir string) (string, error) {
	base, err := s.Base()
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	rel, inside := strings.CutPrefix(real, base+"/")
	if !inside {
		return "", fmt.Errorf("%s is not below repo_base %s", real, base)
	}
	if !strings.HasSuffix(rel, ".git") {
		return "", fmt.Errorf("%s: a mirrored repository's directory must end in .git", real)
	}
	return CleanRepo(rel)
}

// Repositories returns the names of all repositories of this server, in
// lexical order of their paths. Directories that cannot be read are an error
// after the others: they are never taken for absent ones.
func (s *Server) Repositories() ([]string, error) {
	names, _, err := s.Survey()
	return names, err
}

// NotServed is a directory below repo_base that looks like a repository and is none to us.
type NotServed struct {
	Path   string // below repo_base, as it is: any bytes
	Reason error  // ErrName, ErrNoRepo, or what keeps it from being read
}

// Survey returns what Repositories does, and what it leaves out although its name ends in ".git":
// names that we do not take, links out of repo_base, what git does not take for a repository. The .git
// of a working tree is not counted.
func (s *Server) Survey() (names []string, notServed []NotServed, err error) {
	base, err := s.Base()
	if err != nil {
		return nil, nil, err
	}
	var problems []error
	err = filepath.WalkDir(base, func(dir string, d fs.DirEntry, err error) error {
		if err != nil {
			problems = append(problems, err)
			return fs.SkipDir
		}
		if dir == filepath.Join(base, PrivateDir) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(dir, ".git") || dir == base {
			return nil
		}
		if !d.IsDir() && d.Type()&os.ModeSymlink == 0 {
			return nil
		}
		path := strings.TrimPrefix(dir, base+"/")
		if name, _, err := s.Find(path); err == nil {
			names = append(names, name)
		} else if filepath.Base(path) != ".git" && !strings.Contains("/"+path, "/"+PrivateDir) { // what is being made
			notServed = append(notServed, NotServed{path, err})
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	return names, notServed, errors.Join(append(problems, err)...)
}

// Select returns the repositories that match one of the patterns (names or
// globs), all of them when there is no pattern. A pattern without a match is an
// error that names it.
func (s *Server) Select(patterns []string) ([]string, error) {
	if len(patterns) == 0 {
		return s.Repositories()
	}
	var all, selected []string
	var unreadable error // a part of repo_base; the rest is selected from all the same
	seen := map[string]bool{}
	for _, pattern := range patterns {
		matches := []string{}
		if !strings.ContainsAny(pattern, "*?[") {
			name, _, err := s.Find(pattern)
			if err != nil {
				return nil, err
			}
			matches = append(matches, name)
		} else {
			if err := CheckGlob(pattern); err != nil {
				return nil, err
			}
			if all == nil {
				if all, unreadable = s.Repositories(); len(all) == 0 && unreadable != nil {
					return nil, unreadable
				}
			}
			for _, name := range all {
				if MatchGlob(pattern, name) {
					matches = append(matches, name)
				}
			}
		}
		if len(matches) == 0 {
			return nil, fmt.Errorf("%w: nothing matches %q", ErrNoRepo, pattern)
		}
		for _, name := range matches {
			if !seen[name] {
				seen[name] = true
				selected = append(selected, name)
			}
		}
	}
	return selected, unreadable
}
