package testenv

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Programs that scripts can run, in the background too, and whose output and
// exit status they can check like that of any program:
//
//	on SERVER PROGRAM ARG…      as the server's unix user, in its home directory
//	as CLIENT PROGRAM ARG…      as a person, in the script's directory
//	exits N PROGRAM ARG…        succeeds when the exit status is N
//
// and commands that change the world or wait for it:
//
//	user NAME [SERVER…]         makes a client whose key is a user's there (none: everywhere)
//	peer NAME [SERVER…]         the same, but the key is a peer's
//	client NAME                 makes a client whose key no server knows
//	repo NAME [@SERVER…] [--OPTION…] [KEY=VALUE…]
//	                            makes a repository (on all), with options of git init and
//	                            config without "gitolite.mirror."
//	serve SERVER                starts the worker; serve -stop, serve -kill
//	sshd SERVER                 starts sshd again after sshd -stop
//	fill SERVER                 puts the server's state_dir on a disk that is full; fill -undo
//	s3 [--lock] SERVER          makes a bucket, with object lock, for a backup peer of the server:
//	                            $S3_URL, and ~/s3.credentials; s3 -stop, s3 -start
//	wait-equal REPO [SERVER…]   waits for equal refs and HEADs (on all)
//	until REGEXP PROGRAM ARG…   repeats a program until it prints a match; where that is exits,
//	                            the exit status has to be right too
//	set-config SERVER FILE      adds the lines of a file, with $VARIABLES expanded, to
//	                            the server's configuration
//
// $FRODO is the home of frodo's unix user, and so on for all servers; $ROOT is the
// Env's directory; $FREE_PORT is a port on which nobody listens.

// envWorld names the file that tells `on` and `as` about the world.
const envWorld = "TESTENV_WORLD"

// world is the content of that file.
type world struct {
	Root     string
	Programs string
	Servers  map[string]Account
}

func (e *Env) worldFile() string { return filepath.Join(e.Root, "world.json") }

func (e *Env) writeWorld(t testing.TB) {
	t.Helper()
	w := world{Root: e.Root, Programs: e.Programs, Servers: map[string]Account{}}
	for _, s := range e.Servers {
		w.Servers[s.Name] = s.account
	}
	data, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, e.worldFile(), 0o600, 0, 0, string(data))
}

// Main is for the TestMain of a package that runs scripts. It also keeps the
// programs that Programs builds until all tests have ended. It does not return.
func Main(m *testing.M) {
	testscript.Main(holding{m}, map[string]func(){"on": onMain, "as": asMain, "exits": exitsMain})
}

// RunScripts runs the scripts in dir. Each gets the Env that env returns.
func RunScripts(t *testing.T, dir string, env func(testing.TB) *Env) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir: dir, RequireUniqueNames: true, Cmds: scriptCommands,
		Setup: func(s *testscript.Env) error {
			t := s.T().(testing.TB)
			e := env(t)
			s.Values[scriptKey{}] = &scriptWorld{t: t, env: e}
			s.Setenv(envWorld, e.worldFile())
			s.Setenv("ROOT", e.Root)
			s.Setenv("FREE_PORT", strconv.Itoa(freePort(t)))
			s.Setenv("GORACE", "atexit_sleep_ms=0") // exits, built with -race, would sleep for a second each time
			for _, server := range e.Servers {
				s.Setenv(strings.ToUpper(server.Name), server.account.Home)
			}
			return nil
		},
	})
}

// scriptKey is the key of a script's *scriptWorld.
type scriptKey struct{}

type scriptWorld struct {
	t      testing.TB
	env    *Env
	bucket *Bucket // the last that s3 made
}

// scriptCommands are the commands above that need this process.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"user":       command(1, addUser),
	"client":     command(1, addClient),
	"peer":       command(1, addPeer),
	"repo":       command(1, addRepo),
	"serve":      command(1, serve),
	"sshd":       command(1, sshd),
	"fill":       command(1, fill),
	"s3":         command(1, s3Command),
	"wait-equal": command(1, waitEqual),
	"until":      command(2, until),
	"set-config": command(2, setConfig),
}

// command makes a function a command of scripts, which takes at least minArgs
// arguments and cannot be negated.
func command(minArgs int, do func(*testscript.TestScript, *scriptWorld, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < minArgs {
			ts.Fatalf("usage: see script.go")
		}
		do(ts, ts.Value(scriptKey{}).(*scriptWorld), args)
	}
}

func addUser(_ *testscript.TestScript, w *scriptWorld, args []string) {
	w.env.AddUser(w.t, args[0], args[1:]...)
}

func addClient(_ *testscript.TestScript, w *scriptWorld, args []string) {
	w.env.Client(w.t, args[0])
}

func addPeer(_ *testscript.TestScript, w *scriptWorld, args []string) {
	w.env.AddPeer(w.t, args[0], args[1:]...)
}

func addRepo(ts *testscript.TestScript, w *scriptWorld, args []string) {
	config := map[string]string{}
	var servers, options []string
	for _, arg := range args[1:] {
		key, value, isConfig := strings.Cut(arg, "=")
		switch {
		case strings.HasPrefix(arg, "@"):
			servers = append(servers, arg[1:])
		case strings.HasPrefix(arg, "--"):
			options = append(options, arg)
		case isConfig:
			config[key] = value
		default:
			ts.Fatalf("repo: what is %q?", arg)
		}
	}
	for _, s := range w.env.pick(w.t, servers) {
		s.createRepo(w.t, args[0], config, options)
	}
}

func serve(ts *testscript.TestScript, w *scriptWorld, args []string) {
	s := w.env.Server(w.t, args[len(args)-1])
	switch strings.Join(args[:len(args)-1], " ") {
	case "":
		s.Serve(w.t)
	case "-stop":
		s.StopServe(w.t)
	case "-kill":
		s.KillServe(w.t)
	default:
		ts.Fatalf("usage: serve [-stop|-kill] SERVER")
	}
}

func sshd(ts *testscript.TestScript, w *scriptWorld, args []string) {
	s := w.env.Server(w.t, args[len(args)-1])
	switch strings.Join(args[:len(args)-1], " ") {
	case "":
		s.StartSSH(w.t)
	case "-stop":
		s.StopSSH(w.t)
	default:
		ts.Fatalf("usage: sshd [-stop] SERVER")
	}
}

func fill(ts *testscript.TestScript, w *scriptWorld, args []string) {
	s := w.env.Server(w.t, args[len(args)-1])
	switch strings.Join(args[:len(args)-1], " ") {
	case "":
		s.FillState(w.t)
	case "-undo":
		s.UnfillState(w.t)
	default:
		ts.Fatalf("usage: fill [-undo] SERVER")
	}
}

func waitEqual(_ *testscript.TestScript, w *scriptWorld, args []string) {
	w.env.WaitEqual(w.t, args[0], args[1:]...)
}

// until leaves the last output for stdout and stderr to check.
func until(ts *testscript.TestScript, _ *scriptWorld, args []string) {
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(Timeout); ; time.Sleep(2 * pollEvery) {
		// The exit status is what the program makes of the state we wait for.
		err := ts.Exec(args[1], args[2:]...)
		matched := pattern.MatchString(ts.ReadFile("stdout")) || pattern.MatchString(ts.ReadFile("stderr"))
		if matched && (err == nil || args[1] != "exits") {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("never printed %q", args[0])
		}
	}
}

func setConfig(ts *testscript.TestScript, w *scriptWorld, args []string) {
	w.env.Server(w.t, args[0]).Configure(w.t, os.Expand(ts.ReadFile(args[1]), ts.Getenv))
}

// onMain is the program on: it becomes the server's unix user, then the program.
func onMain() {
	w, name, argv := programArgs("on")
	a, ok := w.Servers[name]
	if !ok {
		fail("on", fmt.Errorf("there is no server %q", name))
	}
	for _, err := range []error{
		os.Chdir(a.Home), syscall.Setgroups(nil), syscall.Setgid(a.GID), syscall.Setuid(a.UID),
	} {
		if err != nil {
			fail("on", err)
		}
	}
	become("on", argv, a.environ(w.Programs))
}

// asMain is the program as.
func asMain() {
	w, name, argv := programArgs("as")
	dir := clientDir(w.Root, name)
	if _, err := os.Stat(dir); err != nil {
		fail("as", err)
	}
	become("as", argv, clientEnviron(dir, w.Programs))
}

// exitsMain is the program exits.
func exitsMain() {
	if len(os.Args) < 3 {
		fail("exits", errors.New("usage: exits N PROGRAM ARG…"))
	}
	want, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fail("exits", err)
	}
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		fail("exits", err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		fail("exits", fmt.Errorf("exit status %d, not %d", got, want))
	}
}

func programArgs(program string) (w world, name string, argv []string) {
	if len(os.Args) < 3 {
		fail(program, fmt.Errorf("usage: %s NAME PROGRAM ARG…", program))
	}
	data, err := os.ReadFile(os.Getenv(envWorld))
	if err == nil {
		err = json.Unmarshal(data, &w)
	}
	if err != nil {
		fail(program, err)
	}
	return w, os.Args[1], os.Args[2:]
}

// become replaces this process, so that signals and exit statuses are the
// program's own.
func become(program string, argv, env []string) {
	for _, pair := range env {
		if path, ok := strings.CutPrefix(pair, "PATH="); ok {
			os.Setenv("PATH", path)
		}
	}
	path, err := exec.LookPath(argv[0])
	if err == nil {
		err = syscall.Exec(path, argv, env)
	}
	fail(program, err)
}

// failed is an exit status that none of the programs under test uses.
const failed = 99

func fail(program string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
	os.Exit(failed)
}
