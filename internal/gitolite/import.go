package gitolite

import (
	"bufio"
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
		set("gitolite.mirror.redirectOK", slices.DeleteFunc(trusted, func(host string) bool { return mirrorcfg.CheckHost(host) != nil }))
	}
	return keys, nil
}

// rcHostname is how both versions write the server's name: $GL_HOSTNAME = "frodo"; in
// version 2, HOSTNAME => "frodo", in version 3.
var rcHostname = lazyregexp.New(`^\s*(?:our\s+)?(?:\$GL_HOSTNAME\s*=|HOSTNAME\s*=>)\s*(?:"([^"]*)"|'([^']*)')`)

// version2 is what only a configuration of gitolite 2 has.
var version2 = lazyregexp.New(`(?m)^\s*(?:our\s+)?\$GL_[A-Z_]+\s*=`)

// ReadRC reads ~/.gitolite.rc as text: the name of the server ("" when it has none), and
// whether it is gitolite 2's. It is a program in Perl, of which this sees no more than
// a plain assignment.
func ReadRC(file string) (hostname string, two bool, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("%w: there is no gitolite in this account", err)
	}
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		if m := rcHostname.FindStringSubmatch(scan.Text()); m != nil {
			hostname = m[1] + m[2]
		}
		two = two || version2.MatchString(scan.Text())
	}
	return hostname, two, nil
}
