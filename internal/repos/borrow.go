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
	all, read := Borrowers{}, alternates{}
	for _, name := range names {
		if _, repo, err := server.Find(name); err == nil && len(read.of(repo)) > 0 {
			all[name] = repo
		}
	}
	return all
}

// alternates are lists that were read, by the directory of their repository: each is read once to answer one question.
type alternates map[string][]string

// of returns what a repository borrows itself, each once. What names the repository is left out, as git does.
func (a alternates) of(repo git.Repo) []string {
	dirs, known := a[repo.Dir]
	if !known {
		dirs, _ = repo.Alternates()
		slices.Sort(dirs)
		own := objectsOf(repo)
		dirs = slices.DeleteFunc(slices.Compact(dirs), func(dir string) bool { return dir == own })
		a[repo.Dir] = dirs
	}
	return dirs
}

// objectsOf is a repository's directory of objects, as it is in lists of alternates.
func objectsOf(repo git.Repo) string {
	dir := filepath.Join(repo.Dir, "objects")
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

// borrowed returns the directories of objects that a repository borrows, over others too, and over how many at most; 0: it has all
// of its own. It goes step by step, and not every way: of these there are millions where some borrow from each other.
func (a alternates) borrowed(repo git.Repo) (dirs []string, steps int) {
	for step := a.of(repo); len(step) > 0 && steps < maxBorrow; steps++ {
		dirs = append(dirs, step...)
		var next []string
		for _, dir := range step {
			next = append(next, a.of(git.Repo{Dir: filepath.Dir(dir)})...)
		}
		slices.Sort(next)
		step = slices.Compact(next)
	}
	return dirs, steps
}

// from returns the names of those that borrow from a repository now. Each is before all that it borrows from.
func (b Borrowers) from(repo git.Repo) (names []string) {
	objects := objectsOf(repo)
	steps, read := map[string]int{}, alternates{}
	for name, other := range b {
		dirs, n := read.borrowed(other)
		if slices.Contains(dirs, objects) && objectsOf(other) != objects {
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
	bySteps, read := make([][]string, maxBorrow+1), alternates{}
	for _, name := range names {
		steps := 0
		if repo, ok := b[name]; ok {
			_, steps = read.borrowed(repo)
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
