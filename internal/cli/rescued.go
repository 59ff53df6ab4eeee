package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"mirror-shell/hooks"
	"mirror-shell/internal/git"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/rescue"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// RescuedCmd is rescued [REPO|GLOB]... and what can be done with one of them.
type RescuedCmd struct {
	JSON         bool     `name:"json" help:"Print JSON."`
	Show         string   `help:"Print the log of what only this one has." placeholder:"NAME" xor:"do"`
	Restore      string   `help:"Make a branch of it, on the master." placeholder:"NAME" xor:"do"`
	As           string   `help:"The branch that --restore makes (or a full name, such as refs/tags/v1)." placeholder:"BRANCH"`
	From         string   `help:"With --restore: the peer that has it, when that is not this server." placeholder:"PEER"`
	Drop         string   `help:"Delete it. Its commits remain until git gc prunes them." placeholder:"NAME" xor:"do"`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories (default: all)."`
}

func (c *RescuedCmd) check() error {
	switch {
	case (c.Restore == "") != (c.As == ""):
		return Usage{"--restore NAME and --as BRANCH belong together"}
	case c.From != "" && c.Restore == "":
		return Usage{"--from goes with --restore"}
	case c.Show+c.Restore+c.Drop != "" && (len(c.Repositories) != 1 || strings.ContainsAny(c.Repositories[0], "*?[")):
		return Usage{"name the one repository that it is about"}
	}
	return nil
}

// rescued lists what mirror pushes would have destroyed, or does something with
// one of these.
func (p *Program) rescued(ctx context.Context) error {
	cmd := &p.Rescued
	if err := cmd.check(); err != nil {
		return err
	}
	server, err := p.Server()
	if err != nil {
		return err
	}
	if cmd.Show+cmd.Restore+cmd.Drop == "" {
		return p.listRescued(ctx, server)
	}
	cfg, repo, err := server.OpenRepo(ctx, cmd.Repositories[0])
	switch {
	case err != nil:
		return err
	case cmd.Show != "":
		return p.showRescued(ctx, repo)
	case cmd.Drop != "":
		return p.dropRescued(ctx, cfg, repo)
	}
	return p.restoreRescued(ctx, server, cfg, repo)
}

// RescuedLine is a line of the list, and an element of its JSON.
type RescuedLine struct {
	Repository string `json:"repository"`
	rescue.Entry
	Subject string `json:"subject"`           // of the commit
	Commits *int   `json:"commits,omitempty"` // that no branch or tag has; absent: cannot be told
}

// listRescued goes on after a repository that fails.
func (p *Program) listRescued(ctx context.Context, server *mirrorcfg.Server) error {
	names, err := server.Select(p.Rescued.Repositories)
	if err != nil && len(names) == 0 {
		return err
	}
	lines := []RescuedLine{}
	for _, name := range names {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, repo, failed := server.Find(name)
		var entries []rescue.Entry
		if failed == nil {
			entries, failed = rescue.List(ctx, repo)
		}
		if failed != nil && !errors.Is(failed, mirrorcfg.ErrNoRepo) {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, failed))
		}
		for _, e := range entries {
			lines = append(lines, rescuedLine(ctx, name, repo, e))
		}
	}
	if p.Rescued.JSON {
		return errors.Join(json.NewEncoder(p.Stdout).Encode(lines), err)
	}
	if len(lines) == 0 && err == nil {
		fmt.Fprintf(p.Stdout, "nothing is rescued on %s\n", server.Hostname)
		return nil
	}
	return errors.Join(rescuedTable(p.Stdout, lines), err)
}

// rescuedLine asks git what the value is. What cannot be told is left open: the
// list is the more needed the more is broken.
func rescuedLine(ctx context.Context, name string, repo git.Repo, e rescue.Entry) RescuedLine {
	line := RescuedLine{Repository: name, Entry: e}
	if subject, err := repo.Subject(ctx, e.OID); err == nil {
		line.Subject = subject
	}
	if n, err := repo.CountOutside(ctx, e.OID, rescue.Private); err == nil {
		line.Commits = &n
	}
	return line
}

// maxRefShown is more than any name that a file system takes.
const maxRefShown = 5000

func rescuedTable(w io.Writer, lines []RescuedLine) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "REPOSITORY\tREF\tVALUE\tRESCUED AT\tCOMMITS\tNAME\tSUBJECT")
	for _, l := range lines {
		commits := "?"
		if l.Commits != nil {
			commits = fmt.Sprint(*l.Commits)
		}
		// The name of a ref may hold what a terminal obeys: --json has it as it is.
		fmt.Fprintf(tw, "%s\t%s\t%.10s\t%s\t%s\t%s\t%s\n", l.Repository, proc.OneLine(l.Ref, maxRefShown), l.OID,
			l.Time.Format("2006-01-02 15:04:05Z"), commits, proc.OneLine(l.Name, maxRefShown), proc.OneLine(l.Subject, 60))
	}
	return tw.Flush()
}

func (p *Program) showRescued(ctx context.Context, repo git.Repo) error {
	e, err := rescue.Find(ctx, repo, p.Rescued.Show)
	if err != nil {
		return err
	}
	out := &printable{w: p.Stdout}
	fmt.Fprintf(out, "%s/%s\n%s was at %s until %s\n\n", rescue.Prefix, e.Name, e.Ref, e.OID, e.Time.Format("2006-01-02 15:04:05Z"))
	types, err := repo.Types(ctx, []string{e.OID})
	if err != nil {
		return err
	}
	if kind := types[e.OID]; kind != "commit" && kind != "tag" {
		fmt.Fprintf(out, "it is no commit, but a %s: see git -C %s cat-file -p %s\n", cmp.Or(kind, "missing object"), repo.Dir, e.OID)
		return nil
	}
	if n, err := repo.CountOutside(ctx, e.OID, rescue.Private); err == nil && n == 0 {
		fmt.Fprintln(out, "branches and tags here have every commit of it")
		return nil
	}
	return repo.LogOutside(ctx, out, e.OID, rescue.Private)
}

// printable keeps what a stranger wrote into a commit from talking to the
// terminal of who reads it.
type printable struct {
	w    io.Writer
	rest []byte // the beginning of a character
}

func (t *printable) Write(p []byte) (int, error) {
	data := append(t.rest, p...)
	whole := len(data)
	if start := lastStart(data); !utf8.FullRune(data[start:]) {
		whole = start
	}
	t.rest = bytes.Clone(data[whole:])
	data = data[:whole]
	clean := bytes.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, data)
	if _, err := t.w.Write(clean); err != nil {
		return 0, err
	}
	return len(p), nil
}

// lastStart is where the last character of data begins.
func lastStart(data []byte) int {
	at := len(data) - 1
	for at > 0 && len(data)-at < utf8.UTFMax && !utf8.RuneStart(data[at]) {
		at--
	}
	return max(at, 0)
}

func (p *Program) dropRescued(ctx context.Context, cfg *mirrorcfg.Repo, repo git.Repo) error {
	e, err := rescue.Drop(ctx, repo, p.Rescued.Drop)
	if err != nil {
		return fmt.Errorf("%w: see mirror-shell rescued %s", err, cfg.Name)
	}
	fmt.Fprintf(p.Stdout, "dropped %s of %s, which was at %s\nuntil git gc prunes it, it can be had back: %s\n", e.Name, cfg.Name, e.OID,
		quoted("git", "-C", repo.Dir, "update-ref", rescue.Prefix+"/"+e.Name, e.OID))
	return nil
}

// restoreRescued makes a branch where branches are made, which is the master.
// From there it goes to all copies, as if it had been pushed.
func (p *Program) restoreRescued(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo, repo git.Repo) error {
	cmd := &p.Rescued
	if _, err := rescue.Target(cmd.As); err != nil {
		return err
	}
	if cfg.Role(server.Hostname) == mirrorcfg.Slave {
		return p.restoreElsewhere(ctx, server, cfg, repo)
	}
	var e rescue.Entry
	var err error
	if cmd.From == "" || cmd.From == server.Hostname {
		e, err = rescue.Find(ctx, repo, cmd.Restore)
	} else {
		e, err = p.fetchRescued(ctx, cfg, repo)
	}
	if err != nil {
		return err
	}
	ref, err := rescue.Restore(ctx, repo, e.OID, cmd.As)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.Stdout, "restored %s at %.10s as %s in %s; the rescued ref remains until it is dropped\n", e.Ref, e.OID, ref, cfg.Name)
	return p.queueRestored(server, cfg)
}

// queueRestored queues what a push would have queued.
func (p *Program) queueRestored(server *mirrorcfg.Server, cfg *mirrorcfg.Repo) error {
	if cfg.Role(server.Hostname) != mirrorcfg.Master {
		return nil
	}
	peers, err := cfg.Expand(server.Hostname, mirrorcfg.SlavesKey, mirrorcfg.SyncKey)
	if err == nil && len(peers) > 0 {
		_, err = hooks.Enqueue(server, p.Programs, inbox.Event{Repository: cfg.Name, Peers: peers, Origin: inbox.OriginList}, p.Stderr)
	}
	if err != nil {
		return fmt.Errorf("restored, but not queued for mirroring: %w: when that is mended, run mirror-shell request-push %s", err, cfg.Name)
	}
	return nil
}

// restoreElsewhere prints the command that restores, which is to be run on the
// master: it fetches the commits from here.
func (p *Program) restoreElsewhere(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo, repo git.Repo) error {
	if p.Rescued.From != "" && p.Rescued.From != server.Hostname {
		return fmt.Errorf("%s is not the master of %s, and restores nothing: run it on %s", server.Hostname, cfg.Name, cfg.Master)
	}
	e, err := rescue.Find(ctx, repo, p.Rescued.Restore)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.Stderr, "mirror-shell: the master of %s is %s, where a branch can be made of it: run there:\n", cfg.Name, cfg.Master)
	fmt.Fprintln(p.Stdout, quoted("mirror-shell", "rescued", cfg.Name, "--restore", e.Name, "--from", server.Hostname, "--as", p.Rescued.As))
	return Exit(1)
}

// maxRescuedReply bounds what a peer may tell, in bytes.
const maxRescuedReply = 32 << 20

// fetchRescued asks the peer for the value of the rescued ref and fetches it.
func (p *Program) fetchRescued(ctx context.Context, cfg *mirrorcfg.Repo, repo git.Repo) (rescue.Entry, error) {
	from := p.Rescued.From
	if err := mirrorcfg.CheckHost(from); err != nil {
		return rescue.Entry{}, fmt.Errorf("--from: %w", err)
	}
	var reply limited
	ask := proc.Command(ctx, proc.Env(), proc.SSH(from, shell.Request{Verb: shell.MirrorRescued, Repo: cfg.Name}.Command())...)
	ask.Stdout = &reply
	if _, err := proc.Run(ask); err != nil {
		return rescue.Entry{}, fmt.Errorf("ask %s what it has rescued: %w", from, err)
	}
	var entries []rescue.Entry
	if err := json.Unmarshal(reply.text.Bytes(), &entries); err != nil {
		return rescue.Entry{}, fmt.Errorf("what %s says it has rescued: %w", from, err)
	}
	e, ok := rescue.Pick(entries, p.Rescued.Restore)
	if !ok {
		return rescue.Entry{}, fmt.Errorf("%w on %s: %s", rescue.ErrNotRescued, from, p.Rescued.Restore)
	}
	if err := e.Check(); err != nil {
		return rescue.Entry{}, fmt.Errorf("%s: %w", from, err)
	}
	return e, repo.FetchObject(ctx, from+":"+cfg.Name, e.OID, p.Stderr)
}

// limited is a buffer that does not grow without end. It does not embed one: io.Copy
// would find its ReadFrom, and never call Write.
type limited struct{ text bytes.Buffer }

func (l *limited) Write(data []byte) (int, error) {
	if l.text.Len()+len(data) > maxRescuedReply {
		return 0, fmt.Errorf("more than %d bytes", maxRescuedReply)
	}
	return l.text.Write(data)
}

// plainWord needs no quotes in a shell.
var plainWord = lazyregexp.New(`^[0-9A-Za-z@%+=:,./_-]+$`)

// quoted writes a command for people to paste into a shell. The name of a ref may
// contain nearly everything that a shell acts upon.
func quoted(argv ...string) string {
	words := slices.Clone(argv)
	for i, word := range words {
		if !plainWord.MatchString(word) {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
