package repos

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// A repository may borrow objects from another one on this server (objects/info/alternates, as forks made with git clone
// --shared do). When that is moved, or replaced by what it was once, the borrower lacks what it borrowed, and is damaged. So a
// repository is not deleted, renamed or restored in place while others borrow from it.

// maxBorrow is how far git follows alternates of alternates.
const maxBorrow = 5

// Borrowers are the repositories of a server that borrowed when they were looked for, by name. What they borrow is read anew each time.
type Borrowers map[string]git.Repo

// FindBorrowers looks at all repositories. What cannot be read is left out: git cannot use it either.
func FindBorrowers(server *mirrorcfg.Server) Borrowers {
	names, _ := server.Repositories()
	all := Borrowers{}
	for _, name := range names {
		if _, repo, err := server.Find(name); err == nil && len(alternates(repo)) > 0 {
			all[name] = repo
		}
	}
	return all
}

func alternates(repo git.Repo) []string {
	dirs, _ := repo.Alternates()
	return dirs
}

// borrowed returns the directories of objects that a repository borrows, over others too, and over how many at most; 0: it has all
// of its own.
func borrowed(repo git.Repo, limit int) (dirs []string, steps int) {
	if limit == 0 {
		return nil, 0
	}
	for _, dir := range alternates(repo) {
		more, n := borrowed(git.Repo{Dir: filepath.Dir(dir)}, limit-1)
		dirs, steps = append(append(dirs, dir), more...), max(steps, n+1)
	}
	return dirs, steps
}

// from returns the names of those that borrow from a repository now. Each is before all that it borrows from.
func (b Borrowers) from(repo git.Repo) (names []string) {
	objects := filepath.Join(repo.Dir, "objects")
	if real, err := filepath.EvalSymlinks(objects); err == nil {
		objects = real
	}
	steps := map[string]int{}
	for name, other := range b {
		dirs, n := borrowed(other, maxBorrow)
		if slices.Contains(dirs, objects) && other.Dir != repo.Dir {
			names, steps[name] = append(names, name), n
		}
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Or(steps[y]-steps[x], cmp.Compare(x, y)) })
	return names
}

// Refuse says why a repository may not be moved or replaced, and what to do; instead, ending in ", or ", is another way. nil: nobody
// borrows from it.
func (b Borrowers) Refuse(repo git.Repo, instead string) error {
	names := b.from(repo)
	if len(names) == 0 {
		return nil
	}
	first, more := b[names[0]], ""
	if len(names) > 1 {
		more = " and so on in this order,"
	}
	return fmt.Errorf("%s (%s): nothing was changed: %sgive them objects of their own: git -C %s repack -a -d && rm %s,%s and try again",
		damage(len(names)), proc.OneLine(strings.Join(names, ", "), 200), instead, proc.OneLine(first.Dir, 300), proc.OneLine(first.AlternatesFile(), 300), more)
}

func damage(n int) string {
	if n == 1 {
		return "another repository borrows objects from it and would be damaged"
	}
	return fmt.Sprintf("%d repositories borrow objects from it and would be damaged", n)
}

// InOrder divides repositories into groups: none borrows from one in its own or an earlier group.
func (b Borrowers) InOrder(names []string) (groups [][]string) {
	bySteps := make([][]string, maxBorrow+1)
	for _, name := range names {
		steps := 0
		if repo, ok := b[name]; ok {
			_, steps = borrowed(repo, maxBorrow)
		}
		bySteps[maxBorrow-steps] = append(bySteps[maxBorrow-steps], name)
	}
	return slices.DeleteFunc(bySteps, func(group []string) bool { return len(group) == 0 })
}

// lentTo refuses to move what others borrow from. A master is not told whose they are.
func lentTo(server *mirrorcfg.Server, dir, master string) error {
	b, repo := FindBorrowers(server), git.Repo{Dir: dir}
	if n := len(b.from(repo)); master != "" && n > 0 {
		return fmt.Errorf("others borrow its objects (%d): in each of them, git repack -a -d, then rm objects/info/alternates", n)
	}
	return b.Refuse(repo, "")
}
