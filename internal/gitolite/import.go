package gitolite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// Options are gitolite 3's options of one repository, by their names behind
// "gitolite-options.": what `option mirror.master = frodo` in gitolite.conf has become.
type Options map[string]string

// MirrorOptions asks gitolite for the mirroring options of repositories. They stand in what
// gitolite has compiled of its configuration, and in no git config.
func MirrorOptions(ctx context.Context, repositories []string) (map[string]Options, error) {
	if len(repositories) == 0 {
		return nil, nil
	}
	out, err := run(ctx, strings.NewReader(strings.Join(repositories, "\n")+"\n"), "git-config", "-r", "%", `^gitolite-options\.mirror\.`)
	if err != nil && (proc.ExitCode(err) != 1 || strings.TrimSpace(out) != "") { // 1: none has any
		return nil, err
	}
	return parseOptions(out)
}

// parseOptions reads lines "REPO TAB KEY TAB VALUE".
func parseOptions(text string) (map[string]Options, error) {
	all := map[string]Options{}
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		key, ours := "", false
		if len(fields) == 3 {
			key, ours = strings.CutPrefix(fields[1], "gitolite-options.")
		}
		if !ours {
			return nil, fmt.Errorf("gitolite git-config said %.120q", line)
		}
		if all[fields[0]] == nil {
			all[fields[0]] = Options{}
		}
		all[fields[0]][key] = fields[2]
	}
	return all, nil
}

// copies are the hosts of the options with a name, whatever follows it, by kind of copy:
// "async", "sync" or "nosync".
func (o Options) copies() map[string]string {
	kinds := map[string]string{}
	for _, kind := range []string{"", ".sync", ".nosync"} { // as gitolite: a later one wins
		for _, word := range []string{"slaves", "copies"} { // the first is what older versions call them
			for key, value := range o {
				if !strings.HasPrefix(key, "mirror."+word+kind) {
					continue
				}
				for host := range strings.FieldsSeq(value) {
					kinds[host] = map[string]string{"": "async", ".sync": "sync", ".nosync": "nosync"}[kind]
				}
			}
		}
	}
	return kinds
}

// nosyncKey is the list of copies that are pushed to only when somebody asks.
const nosyncKey = "gitolite.mirror.nosync"

// Keys are the git config keys that say the same here. Copies that gitolite waits for are
// slaves that a push waits for; those that it leaves to others become a list of their own,
// for cron. An error names a host that cannot be one here.
func (o Options) Keys() (map[string]string, error) {
	keys := map[string]string{}
	set := func(key string, hosts []string) {
		slices.Sort(hosts)
		if len(hosts) > 0 {
			keys[key] = strings.Join(hosts, " ")
		}
	}
	lists := map[string][]string{}
	var all, pushed []string
	for host, kind := range o.copies() {
		if err := mirrorcfg.CheckHost(host); err != nil {
			return nil, err
		}
		lists[kind] = append(lists[kind], host)
		all = append(all, host)
		if kind != "nosync" {
			pushed = append(pushed, host)
		}
	}
	if master := o["mirror.master"]; master != "" {
		if err := mirrorcfg.CheckHost(master); err != nil {
			return nil, err
		}
		keys["gitolite.mirror.master"] = master
	}
	set(mirrorcfg.SlavesKey, pushed)
	set(mirrorcfg.SyncKey, lists["sync"])
	set(nosyncKey, lists["nosync"])
	var trusted []string
	for key, value := range o {
		if strings.HasPrefix(key, "mirror.redirectOK") {
			trusted = append(trusted, strings.Fields(value)...)
		}
	}
	switch {
	case len(trusted) == 1 && trusted[0] == "all" && len(lists["nosync"]) == 0:
		keys["gitolite.mirror.redirectOK"] = "true"
	case len(trusted) == 1 && trusted[0] == "all":
		set("gitolite.mirror.redirectOK", all)
	default:
		// gitolite lets no host redirect that is no copy, whatever this option says; our list
		// alone would.
		slices.Sort(trusted)
		set("gitolite.mirror.redirectOK", slices.DeleteFunc(slices.Compact(trusted), func(host string) bool { return !slices.Contains(all, host) }))
	}
	return keys, nil
}

// Stranded reports whether gitolite serves the repository to nobody: it has copies, and no
// master. Without a master a repository is not mirrored here, and users may push to it.
func (o Options) Stranded() bool { return o["mirror.master"] == "" && len(o.copies()) > 0 }

// rcHostname is how both versions write the server's name: $GL_HOSTNAME = "frodo"; in
// version 2, HOSTNAME => "frodo", in version 3.
var rcHostname = lazyregexp.New(`^\s*(?:our\s+)?(?:\$GL_HOSTNAME\s*=|HOSTNAME\s*=>)\s*(?:"([^"]*)"|'([^']*)')`)

// rcBase is how version 2 says where the repositories are: $REPO_BASE = "repositories";
var rcBase = lazyregexp.New(`^\s*(?:our\s+)?\$REPO_BASE\s*=\s*(.*?)\s*;`)

// rcString is a string in which Perl has nothing to put.
var rcString = lazyregexp.New(`^(?:"([^"$@\\]*)"|'([^'\\]*)')$`)

// version2 is what only a configuration of gitolite 2 has.
var version2 = lazyregexp.New(`(?m)^\s*(?:our\s+)?\$GL_[A-Z_]+\s*=`)

// Text is what ~/.gitolite.rc says of itself, read as text: it is a program in Perl, of
// which this sees no more than plain assignments.
type Text struct {
	Hostname string // "" when it has none
	Two      bool   // it is gitolite 2's
	RepoBase string // of gitolite 2, below the home directory or a full path; "" when it is not set
}

// ReadRC reads ~/.gitolite.rc. A place of the repositories that only Perl could tell is an
// error.
func ReadRC(file string) (rc Text, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return rc, fmt.Errorf("%w: there is no gitolite in this account", err)
	}
	if err != nil {
		return rc, err
	}
	base := ""
	for line := range strings.Lines(string(text)) {
		if m := rcHostname.FindStringSubmatch(line); m != nil {
			rc.Hostname = m[1] + m[2]
		}
		if m := rcBase.FindStringSubmatch(line); m != nil {
			base = m[1]
		}
		rc.Two = rc.Two || version2.MatchString(line)
	}
	if base == "" || !rc.Two {
		return rc, nil
	}
	m := rcString.FindStringSubmatch(base)
	if m == nil {
		return rc, fmt.Errorf("%s: where the repositories are cannot be told from $REPO_BASE = %s: write it there as a plain string", file, base)
	}
	rc.RepoBase = m[1] + m[2]
	return rc, nil
}
