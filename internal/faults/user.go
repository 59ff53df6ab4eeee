package faults

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/testenv"
)

// user is a person who pushes, one push after another.
type user struct {
	*testenv.Client
	w      *world
	number int
	serial int
	known  map[string]map[string]string // of each repository, what the refs are on the master, as far as the user knows
}

func newUser(t testing.TB, w *world, number int, c *testenv.Client) *user {
	t.Helper()
	u := &user{Client: c, w: w, number: number, known: map[string]map[string]string{}}
	for _, r := range repositories {
		if got := execute(time.Minute, "", program("git", "init", "-q", "--bare", u.dir(r.name))); got.status != 0 {
			t.Fatal(got)
		}
		u.known[r.name] = map[string]string{}
	}
	return u
}

func (u *user) dir(repo string) string { return filepath.Join(u.Dir, "repositories", repo) }

// pushLimit is how long the user has patience. No fault lasts nearly as long.
const pushLimit = 45 * time.Second

func (u *user) git(repo, stdin string, args ...string) result {
	return execute(pushLimit, stdin, func(ctx context.Context) *exec.Cmd {
		return u.Command(ctx, u.dir(repo), append([]string{"git", "-c", "gc.auto=0"}, args...)...)
	})
}

// run makes pushes.
func (u *user) run(plans []pushPlan) {
	for _, p := range plans {
		u.w.keepPace()
		if p.fetch {
			u.fetch(p.repo)
		}
		u.push(p)
		u.w.made.Add(1)
	}
}

// fetch learns what the master has.
func (u *user) fetch(repo repository) {
	r := u.git(repo.name, "", "fetch", "-q", "--prune", "--no-tags", repo.master+":"+repo.name,
		"+refs/heads/*:refs/known/heads/*", "+refs/tags/*:refs/known/tags/*", "+refs/notes/*:refs/known/notes/*")
	if r.status != 0 {
		u.w.tally.add("fetches that failed", 1)
		u.w.history.add("%s fetch %s: %s", u.Name, repo.name, r)
		return
	}
	list := u.git(repo.name, "", "for-each-ref", "--format=%(objectname) %(refname)", "refs/known")
	refs := map[string]string{}
	for line := range strings.Lines(list.stdout) {
		oid, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		refs["refs/"+strings.TrimPrefix(ref, "refs/known/")] = oid
	}
	u.known[repo.name] = refs
}

// push carries out a plan.
func (u *user) push(p pushPlan) {
	server := p.repo.master
	if pick := p.through % 100; pick >= 60 {
		server = p.repo.slaves[int(pick)%len(p.repo.slaves)]
	}
	changes, err := u.prepare(p)
	if err != nil {
		u.w.t.Errorf("%s cannot prepare a push to %s: %v", u.Name, p.repo.name, err)
		return
	}
	args := []string{"push", "--porcelain"}
	if p.atomic {
		args = append(args, "--atomic")
	}
	var specs []string
	for _, c := range changes {
		if c.destructive {
			args = append(args, "--force-with-lease="+c.ref+":"+c.old)
		}
		specs = append(specs, c.new+":"+c.ref)
	}
	start := u.w.oracle.now()
	r := u.git(p.repo.name, "", append(append(args, server+":"+p.repo.name), specs...)...)
	judgePush(changes, r)
	for i := range changes {
		changes[i].start = start
	}
	u.w.oracle.pushed(changes)
	u.learn(p.repo.name, changes)
	u.tell(p.repo, server, changes, r)
}

// prepare makes the objects of a push.
func (u *user) prepare(p pushPlan) ([]change, error) {
	var changes []change
	seen := map[string]bool{}
	known := u.known[p.repo.name]
	if p.clear {
		for ref := range known {
			if strings.HasPrefix(ref, "refs/heads/") && ref != "refs/heads/main" {
				p.refs = append(p.refs, refPlan{ref: ref, move: remove})
			}
		}
	}
	for _, plan := range p.refs {
		if seen[plan.ref] {
			continue
		}
		seen[plan.ref] = true
		c, err := u.change(p, plan, known)
		if err != nil {
			return nil, err
		}
		c.repo, c.ref, c.old, c.who = p.repo.name, plan.ref, known[plan.ref], u.Name
		changes = append(changes, c)
	}
	return changes, nil
}

// change decides on the new value of a ref, and makes it.
func (u *user) change(p pushPlan, plan refPlan, known map[string]string) (c change, err error) {
	now := known[plan.ref]
	tip := u.w.oracle.peel(now)
	isTag := strings.HasPrefix(plan.ref, "refs/tags/")
	switch parent := u.w.oracle.parent(tip); {
	case plan.move == remove && now != "":
		return change{destructive: true}, nil
	case plan.move == rewind && parent != "":
		return change{destructive: true, new: parent}, nil
	case plan.move == fork && known[plan.from] != "" && u.w.oracle.peel(known[plan.from]) != now:
		return change{destructive: true, new: u.w.oracle.peel(known[plan.from])}, nil
	case plan.move == rewrite && now != "":
		c.destructive = true
		c.new, err = u.commit(p, parent)
		return c, err
	case plan.move == annotated && isTag:
		c.destructive = true
		if tip == "" {
			if tip, err = u.commit(p, u.w.oracle.peel(known[plan.from])); err != nil {
				return c, err
			}
		}
		c.new, err = u.tag(p.repo.name, tip)
		return c, err
	}
	if tip == "" {
		tip = u.w.oracle.peel(known[plan.from])
	}
	if tip == "" {
		tip = u.w.oracle.peel(known["refs/heads/main"])
	}
	c.destructive = isTag && now != ""
	c.new, err = u.commit(p, tip)
	return c, err
}

// commit makes a commit that nobody else has made.
func (u *user) commit(p pushPlan, parent string) (string, error) {
	u.serial++
	name := fmt.Sprintf("%s %d", u.Name, u.serial)
	content := make([]byte, p.bytes)
	r := stream(u.w.options.Seed, uint64(u.number)<<32|uint64(u.serial))
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	blob := u.git(p.repo.name, name+"\n"+string(content), "hash-object", "-w", "--stdin")
	tree := u.git(p.repo.name, "100644 blob "+strings.TrimSpace(blob.stdout)+"\tfile\n", "mktree")
	args := []string{"commit-tree", "-m", name, strings.TrimSpace(tree.stdout)}
	if parent != "" {
		args = append(args, "-p", parent)
	}
	made := u.git(p.repo.name, "", args...)
	if made.status != 0 {
		return "", fmt.Errorf("commit: %s %s %s", blob, tree, made)
	}
	oid := strings.TrimSpace(made.stdout)
	if parent == "" {
		u.w.oracle.commit(oid)
	} else {
		u.w.oracle.commit(oid, parent)
	}
	return oid, nil
}

func (u *user) tag(repo, commit string) (string, error) {
	u.serial++
	text := fmt.Sprintf("object %s\ntype commit\ntag t\ntagger %s <%s@example.com> %d +0000\n\ntag %d\n", commit, u.Name, u.Name, time.Now().Unix(), u.serial)
	made := u.git(repo, text, "mktag")
	if made.status != 0 {
		return "", fmt.Errorf("tag: %s", made)
	}
	oid := strings.TrimSpace(made.stdout)
	u.w.oracle.tag(oid, commit)
	return oid, nil
}

// learn remembers what was accepted.
func (u *user) learn(repo string, changes []change) {
	for _, c := range changes {
		switch {
		case c.outcome != acked:
		case c.new == "":
			delete(u.known[repo], c.ref)
		default:
			u.known[repo][c.ref] = c.new
		}
	}
}

// tell notes how a push ended.
func (u *user) tell(repo repository, server string, changes []change, r result) {
	count := map[outcome]int{}
	what := ""
	for _, c := range changes {
		count[c.outcome]++
		what += fmt.Sprintf(" %s:%.8s..%.8s:%s", c.ref, c.old, c.new, c.outcome)
	}
	kind := "pushes cut off"
	switch {
	case r.status == 0:
		kind = "pushes accepted"
	case r.late:
		kind = "pushes hung"
		u.w.problem("%s waited %s for a push to %s of %s, longer than any fault lasts", u.Name, pushLimit, server, repo.name)
	case count[acked] > 0:
		kind = "pushes accepted in part"
	case strings.Contains(r.stderr, serverDown):
		kind = "pushes that found the server down"
	case count[unknown] == 0:
		kind = "pushes refused"
	}
	u.w.tally.add(kind, 1)
	u.w.tally.add("refs pushed", len(changes))
	u.w.history.add("%s push %s:%s%s: %s", u.Name, server, repo.name, what, r)
}

// serverDown is what ssh says of a server that does not listen.
const serverDown = "Connection refused"

// judgePush finds the outcome of each ref in what git push --porcelain has printed.
func judgePush(changes []change, r result) {
	told := map[string]outcome{}
	for line := range strings.Lines(r.stdout) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) < 3 {
			continue
		}
		_, ref, ok := strings.Cut(fields[1], ":")
		switch {
		case !ok:
		case fields[0] == "!" && strings.Contains(fields[2], "[remote failure]"):
			told[ref] = unknown
		case fields[0] == "!":
			told[ref] = refused
		case strings.Contains(" +-*=", fields[0]):
			told[ref] = acked
		}
	}
	never := r.status != 0 && len(told) == 0 &&
		(strings.Contains(r.stderr, "please push to") || strings.Contains(r.stderr, "push rejected:") || strings.Contains(r.stderr, serverDown))
	for i, c := range changes {
		o, ok := told[c.ref]
		switch {
		case ok:
			changes[i].outcome = o
		case never:
			changes[i].outcome = refused
		default:
			changes[i].outcome = unknown
		}
	}
}
