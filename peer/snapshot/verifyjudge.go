package snapshot

import (
	"context"
	"strings"

	"mirror-shell/internal/proc"
)

// damage notes what is wrong with a snapshot; the first of it is enough.
func (ver *verification) damage(name Name, what string) {
	if ver.damaged[name.Sum] == "" {
		ver.damaged[name.Sum] = what
	}
}

// judge has the snapshots of which something is damaged count as bad: the next backup is not built on the newest then, and
// puts everything anew; a restore and a policy look for one that is whole. All of them, since a pack that is
// damaged spoils each snapshot that needs it: were the newest alone marked, the one before it would
// be taken for the whole one, and prune could remove that which is.
func (ver *verification) judge(ctx context.Context, repository string) error {
	judged, err := ver.v.verdicts(ctx, repository)
	if err != nil {
		return err
	}
	if err := ver.judgeNewest(ctx, ver.look[0], judged[ver.look[0].Sum]); err != nil {
		return err
	}
	for _, name := range ver.look[1:] {
		if what := ver.damaged[name.Sum]; what != "" && judged[name.Sum] != checkBad && judged[name.Sum] != checkForgotten {
			if err := ver.v.recordVerdict(ctx, name, badCheck(name, what)); err != nil {
				return err
			}
		}
	}
	return ver.acquit(ctx, repository, judged)
}

func badCheck(name Name, what string) Check {
	return Check{Kind: checkBad, Snapshot: name.Sum, Error: proc.OneLine(what, 4000)}
}

// judgeNewest marks the newest snapshot as bad when something of it is damaged. A drill that went well ends that.
func (ver *verification) judgeNewest(ctx context.Context, name Name, verdict string) error {
	if verdict == checkForgotten {
		return nil
	}
	damaged := ver.damaged[name.Sum]
	good := damaged == "" && ver.o.Drill && ver.found.Drill.Error == ""
	bad := verdict == checkBad
	if damaged == "" && !good {
		if bad {
			ver.fault(name.Key(), "is known not to be whole: run git fsck in the repository, mend it, and back it up again", name)
		}
		return nil
	}
	if bad != good {
		return nil
	}
	c := badCheck(name, damaged)
	if good {
		c = Check{Kind: checkGood, Snapshot: name.Sum, Text: ver.found.Drill.Text}
	}
	return ver.v.recordVerdict(ctx, name, c)
}

// acquit lets older snapshots count again that are bad for nothing but their data, when all of that was read and is right:
// somebody has put back what was damaged, or a disk is there again.
func (ver *verification) acquit(ctx context.Context, repository string, judged map[string]string) error {
	if !ver.o.ReadData {
		return nil
	}
	suspects := map[string]Name{}
	for _, l := range ver.prev { // whose manifests were read
		if l.Name != ver.look[0] && judged[l.Sum] == checkBad && ver.damaged[l.Sum] == "" {
			suspects[l.Sum] = l.Name
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	var right []Name
	for c, err := range ver.v.checks(ctx, repository) {
		if err != nil {
			return err
		}
		name, is := suspects[c.Sum]
		if !is || c.Kind != checkBad {
			continue
		}
		delete(suspects, c.Sum) // what is older does not count
		if said, err := ver.v.loadCheck(ctx, c); err == nil && strings.HasPrefix(said.Error, dataOf(repository)) {
			right = append(right, name)
		}
	}
	for _, name := range right {
		if err := ver.v.recordVerdict(ctx, name, Check{Kind: checkGood, Snapshot: name.Sum, Text: "all of its data was read and is right"}); err != nil {
			return err
		}
	}
	return nil
}
