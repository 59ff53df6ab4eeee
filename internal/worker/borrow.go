package worker

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
)

// A repository may borrow objects from another one on this server (objects/info/alternates, as forks made with git clone
// --shared do). When that is replaced by what it was once, the borrower lacks what it borrowed since, and is damaged. So a
// repository is not replaced in place while others borrow from it. A restored one has all of its own: borrowers are restored
// first, and borrow no more.

// maxBorrow is how far git follows alternates of alternates.
const maxBorrow = 5

// borrowing is the repositories of this server that borrowed when a command began, by name. What they borrow is read anew each time.
type borrowing map[string]git.Repo

// newBorrowing looks at all repositories. What cannot be read is left out: git cannot use it either, and a restore may be what mends it.
func (c *command) newBorrowing() borrowing {
	names, _ := c.server.Repositories()
	all := borrowing{}
	for _, name := range names {
		if _, repo, err := c.server.Find(name); err == nil && len(alternates(repo)) > 0 {
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
func (b borrowing) from(repo git.Repo) (names []string) {
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

// refuse says why a repository may not be replaced; nil: nobody borrows from it.
func (b borrowing) refuse(repo git.Repo) error {
	names := b.from(repo)
	if len(names) == 0 {
		return nil
	}
	first, more := b[names[0]], ""
	if len(names) > 1 {
		more = " and so on in this order,"
	}
	return fmt.Errorf("%d repositories borrow objects from it and would be damaged (%s): nothing was changed: restore them in place, too, or give them their own: git -C %s repack -a -d && rm %s,%s and try again",
		len(names), few(names), proc.OneLine(first.Dir, 300), proc.OneLine(first.AlternatesFile(), 300), more)
}

// inOrder divides repositories into groups: none borrows from one in its own or an earlier group.
func (b borrowing) inOrder(names []string) (groups [][]string) {
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
