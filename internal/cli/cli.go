package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// Program is one run of mirror-shell or mirrord: the parsed arguments and what
// it works with.
type Program struct {
	Grammar
	Command  string   // "request-push", "status", …
	Args     []string // as given
	Programs string   // directory of our programs
	Stdin    io.Reader
	Stdout   io.Writer
	Stderr   io.Writer
}

// Exit is an error that carries an exit status and has been told already.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Usage is an error of whoever typed the command: exit status 2.
type Usage struct{ Message string }

func (u Usage) Error() string { return u.Message }

// exits makes kong's own ends (help, version) an error that Main understands.
type exits struct{ code int }

// Main parses args, has run carry the command out and returns the exit status:
// 0 done; 1 refused, failed or not equal; 2 wrong usage. An interrupt ends the
// context that run gets.
func Main(args []string, run func(context.Context, *Program) error) (status int) {
	defer func() {
		if e, ok := recover().(exits); ok {
			status = e.code
		}
	}()
	p := &Program{Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if err := p.parse(); err != nil {
		fmt.Fprintf(os.Stderr, "mirror-shell: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return p.status(run(ctx, p))
}

func (p *Program) status(err error) int {
	var exit Exit
	var usage Usage
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(p.Stderr, "mirror-shell: %v: see mirror-shell %s --help\n", err, p.Command)
		return 2
	}
	fmt.Fprintf(p.Stderr, "mirror-shell: %s\n", proc.OneLine(err.Error(), 2000))
	return 1
}

// parseForced recognises the two forced commands, as add-peer and add-user write
// them, without building the parser: that costs every session more time than
// everything else we do in it.
func (p *Program) parseForced() bool {
	args := p.Args
	if len(args) == 4 && args[0] == "--config" {
		p.Config, args = args[1], args[2:]
	}
	if len(args) != 2 || strings.HasPrefix(args[1], "-") {
		return false
	}
	switch args[0] {
	case "peer":
		p.Peer.Name = args[1]
	case "user":
		p.User.Name = args[1]
	default:
		return false
	}
	p.Command = args[0]
	return true
}

func (p *Program) parse() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return err
	}
	p.Programs = filepath.Dir(self)
	if p.parseForced() {
		return nil
	}
	parser, err := newParser(&p.Grammar)
	if err != nil {
		return err
	}
	args := p.Args
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(foreground(args))
	if err != nil {
		return fmt.Errorf("%w: see mirror-shell --help", err)
	}
	p.Command, _, _ = strings.Cut(parsed.Command(), " ")
	return nil
}

func newParser(grammar *Grammar) (*kong.Kong, error) {
	return kong.New(grammar,
		kong.Name("mirror-shell"),
		kong.Description("Git mirroring and backup: every repository in more than one place, equal, and known to be."),
		kong.Vars{"version": shell.ProgramVersion()},
		kong.Exit(func(code int) { panic(exits{code}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
}

// Model is the grammar as kong has read it: what manual pages and completions
// are made from.
func Model() (*kong.Application, error) {
	parser, err := newParser(&Grammar{})
	if err != nil {
		return nil, err
	}
	return parser.Model, nil
}

// foreground accepts request-push's -fg, which gitolite's administrators have
// in their fingers and scripts, as --fg.
func foreground(args []string) []string {
	out := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		if arg == "-fg" {
			arg = "--fg"
		}
		out = append(out, arg)
	}
	return out
}

// Server loads the server's configuration, and refuses commands that root gives in another account's place; doctor
// says that among all else, and whose session it is has been sshd's decision.
func (p *Program) Server() (*mirrorcfg.Server, error) {
	server, err := mirrorcfg.Load(p.Config)
	if err != nil || p.Command == "doctor" || p.Command == "peer" || p.Command == "user" {
		return server, err
	}
	if err := RefuseRoot(server); err != nil {
		return nil, err
	}
	return server, nil
}

// Sibling returns the path of another program of ours.
func (p *Program) Sibling(name string) string { return filepath.Join(p.Programs, name) }

// Light carries out the commands of mirror-shell itself, and hands the others
// to mirrord.
func Light(ctx context.Context, p *Program) error {
	switch p.Command {
	case "peer", "user":
		return p.forced(ctx)
	case "request-push":
		if !p.RequestPush.FG {
			return p.requestPush(ctx)
		}
	case "add-peer":
		return p.addKey(shell.KeyPeer, p.AddPeer)
	case "add-user":
		return p.addKey(shell.KeyUser, p.AddUser)
	case "remove-peer":
		return p.removeKey(shell.KeyPeer, p.RemovePeer)
	case "remove-user":
		return p.removeKey(shell.KeyUser, p.RemoveUser)
	case "list-keys":
		return p.listKeys()
	case "trash":
		return p.trash(ctx)
	case "rescued":
		return p.rescued(ctx)
	case "install-hooks":
		return p.installHooks(ctx)
	case "import-gitolite":
		return p.importGitolite(ctx)
	case "gitolite-where":
		return p.gitoliteWhere(ctx)
	case "apply":
		return p.apply(ctx)
	case "names":
		return p.names()
	case "demo":
		return p.demo(ctx)
	}
	return p.become(p.Sibling("mirrord"))
}

// become replaces this process with another program of ours, same arguments.
func (p *Program) become(program string) error {
	err := syscall.Exec(program, append([]string{program}, p.Args...), os.Environ())
	return fmt.Errorf("%s: %w: mirror-shell and mirrord belong into one directory", program, err)
}

// demo builds the sibling programs when mirror-shell was started by `go run`,
// and becomes mirrord demo.
func (p *Program) demo(ctx context.Context) error {
	if _, err := os.Stat(p.Sibling("mirrord")); err == nil {
		return p.become(p.Sibling("mirrord"))
	}
	dir, err := os.MkdirTemp("", "mirror-shell-programs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(p.Stderr, "building the programs (the first time takes a minute or two) …")
	build := exec.CommandContext(ctx, "go", "build", "-o", dir, "mirror-shell/cmd/...")
	build.Stdout, build.Stderr = p.Stderr, p.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the programs: %w: run demo from the source tree, or with mirrord beside mirror-shell", err)
	}
	child := exec.CommandContext(ctx, filepath.Join(dir, "mirrord"), p.Args...)
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.Stdin, child.Stdout, child.Stderr = p.Stdin, p.Stdout, p.Stderr
	if err := child.Run(); err != nil {
		if code := proc.ExitCode(err); code > 0 {
			return Exit(code)
		}
		return err
	}
	return nil
}
