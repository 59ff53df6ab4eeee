// Package worker is mirrord: the commands that need the jobs table or push to
// peers, and the daemon. It is where the queue, which knows no peers, and the
// peers, which know no queue, meet (see job).
package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/metrics"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/shell"
)

// Run carries out the commands of mirrord.
func Run(ctx context.Context, p *cli.Program) error {
	switch p.Command {
	case "demo":
		return demo(ctx, p)
	case "demo-ssh":
		return demoSSH(ctx, p)
	}
	server, err := p.Server()
	if err != nil {
		return err
	}
	c := &command{Program: p, server: server}
	switch p.Command {
	case "backup", "restore", "verify":
		// They move many bytes through buffers and keep little: collecting them four times as often costs
		// nothing that can be measured, and a server that is small is not pushed into its swap.
		debug.SetGCPercent(25)
	}
	switch p.Command {
	case "serve":
		return c.serve(ctx)
	case "drain":
		return c.drain(ctx)
	case "request-push":
		if !p.RequestPush.FG {
			return cli.Light(ctx, p)
		}
		return c.pushNow(ctx)
	case "doctor":
		return c.doctor(ctx)
	case "mirror-digest":
		return c.mirrorDigest(ctx)
	case "snapshots":
		return c.snapshots(ctx)
	case "restore":
		return c.restore(ctx)
	case "verify":
		return c.verify(ctx)
	case "prune":
		return c.prune(ctx)
	}
	done, err := c.open(ctx, queueOptions(server))
	if err != nil {
		return err
	}
	defer done()
	switch p.Command {
	case "sync":
		return c.syncAll(ctx)
	case "backup":
		return c.backup(ctx)
	case "await":
		return c.await(ctx)
	case "status":
		return c.status(ctx)
	case "pause":
		return c.pause(ctx)
	case "resume":
		return c.resume(ctx)
	case "forget":
		return c.forget(ctx)
	case "approve":
		return c.approve(ctx)
	case "delete":
		return c.delete(ctx)
	case "rename":
		return c.rename(ctx)
	}
	return cli.Light(ctx, p)
}

// command is one run of a mirrord command.
type command struct {
	*cli.Program
	server  *mirrorcfg.Server
	queue   *queue.Queue
	metrics *metrics.Metrics // of serve; nil: nobody asks for them
	serving time.Time        // since when serve keeps the schedules; zero: this is not serve
}

func openQueue(ctx context.Context, server *mirrorcfg.Server) (*queue.Queue, error) {
	return queue.Open(ctx, queueOptions(server))
}

// openPatiently is for a worker: a database that is down, or a disk without room, is
// waited for, and the inbox keeps what arrives meanwhile.
func openPatiently(ctx context.Context, server *mirrorcfg.Server) (*queue.Queue, error) {
	options := queueOptions(server)
	options.Patient = true
	return queue.Open(ctx, options)
}

func queueOptions(server *mirrorcfg.Server) queue.Options {
	return queue.Options{
		StateDir: server.StateDir, URL: server.Queue.URL, Server: server.Hostname,
		RetryMax: time.Duration(server.Worker.RetryMax), OnLoss: tellLoss(server),
	}
}

// job returns what the queue runs: one peer.Sync, its errors in the queue's
// terms. What a peer says on the way goes to say, and what it took to m, if there is one.
func job(peers *peer.Peers, say io.Writer, m *metrics.Metrics) queue.Func {
	return func(ctx context.Context, j queue.Job) (queue.Result, error) {
		began := time.Now()
		out, err := peers.Sync(ctx, peer.Job{
			Repository: j.Repository, Peer: j.Peer, Listed: j.Origin == inbox.OriginList,
		}, say)
		err = inQueueTerms(err)
		if m != nil {
			m.Observe(metrics.Run{
				Peer: j.Peer, Kind: peers.Kind(j.Peer), Result: resultOf(err), Took: time.Since(began), Phases: out.Phases, Sent: out.Sent,
			})
		}
		return queue.Result{Digest: out.Digest, Note: out.Note, Renote: out.Renote}, err
	}
}

// resultOf names an outcome as metrics do.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, queue.ErrHeld):
		return "held"
	case errors.Is(err, queue.ErrDropped):
		return "dropped"
	case errors.Is(err, queue.ErrPeerDown):
		return "down"
	}
	return "failed"
}

// inQueueTerms adds the queue's sentinel to a peer's. A job that is held in part
// and failed in part waits for a person, who sees both.
func inQueueTerms(err error) error {
	for _, pair := range []struct{ ours, theirs error }{
		{peer.ErrHeld, queue.ErrHeld}, {peer.ErrRenamed, queue.ErrGone}, {peer.ErrDropped, queue.ErrDropped}, {peer.ErrUnreachable, queue.ErrPeerDown},
	} {
		if errors.Is(err, pair.ours) {
			return &termed{err, pair.theirs}
		}
	}
	return err
}

// termed is an error that also is a sentinel, without saying so twice.
type termed struct {
	error
	sentinel error
}

func (t *termed) Unwrap() []error { return []error{t.error, t.sentinel} }

// pushNow is request-push -fg: one push in this process.
func (c *command) pushNow(ctx context.Context) error {
	server, targets, err := c.PushTargets(ctx)
	if err != nil {
		return err
	}
	if len(targets) != 1 {
		return cli.Usage{Message: fmt.Sprintf("-fg needs exactly one peer, not %d (%s)", len(targets), strings.Join(targets, " "))}
	}
	done, err := c.open(ctx, queueOptions(server))
	if err != nil {
		return err
	}
	defer done()
	key := queue.Key{Repository: c.RequestPush.Repo, Peer: targets[0]}
	peers, stop := c.newPeers()
	defer stop()
	// Somebody asks: HEAD is sent again, whatever the peer was told before.
	if err := peers.SetKnownHead(ctx, key.Repository, key.Peer, ""); err != nil {
		return err
	}
	fmt.Fprintf(c.Stderr, "%s ==== (%s) ===> %s\n", server.Hostname, key.Repository, key.Peer)
	result, err := c.queue.RunNow(ctx, key, inbox.OriginExplicit, job(peers, c.Stderr, nil))
	if err != nil {
		return err
	}
	note := ""
	if result.Note != "" {
		note = " (" + result.Note + ")"
	}
	fmt.Fprintf(c.Stderr, "%s on %s is equal%s\n", key.Repository, key.Peer, note)
	return nil
}

func (c *command) pause(ctx context.Context) error {
	if err := mirrorcfg.CheckHost(c.Pause.Name); err != nil {
		return err
	}
	known, _, err := c.peersOfJobs(ctx)
	if err != nil {
		return err
	}
	if err := c.queue.Pause(ctx, c.Pause.Name); err != nil {
		return err
	}
	if _, configured := c.server.Peers[c.Pause.Name]; !configured && len(known) > 0 && !slices.Contains(known, c.Pause.Name) {
		fmt.Fprintf(c.Stderr, "mirror-shell: nothing was to be pushed to a peer %s so far, only to: %s\n", c.Pause.Name, orNone(known))
	}
	fmt.Fprintf(c.Stdout, "%s is paused: what is to be pushed to it waits for mirror-shell resume %s\n", c.Pause.Name, c.Pause.Name)
	return nil
}

func (c *command) resume(ctx context.Context) error {
	if err := mirrorcfg.CheckHost(c.Resume.Name); err != nil {
		return err
	}
	_, paused, err := c.peersOfJobs(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(paused, c.Resume.Name) { // that is what was asked for, unless the name was mistyped
		fmt.Fprintf(c.Stdout, "%s was not paused; paused are: %s\n", c.Resume.Name, orNone(paused))
		return nil
	}
	if err := c.queue.Resume(ctx, c.Resume.Name); err != nil {
		return err
	}
	fmt.Fprintf(c.Stdout, "%s is resumed\n", c.Resume.Name)
	return c.wake()
}

// peersOfJobs returns the peers that something was to be pushed to, and those of them that are paused.
func (c *command) peersOfJobs(ctx context.Context) (known, paused []string, err error) {
	rows, err := c.queue.Rows(ctx, queue.Filter{})
	if err != nil {
		return nil, nil, err
	}
	for _, row := range rows {
		known = append(known, row.Peer)
	}
	peers, err := c.queue.Peers(ctx)
	for _, p := range peers {
		if p.Paused {
			paused = append(paused, p.Name)
		}
	}
	slices.Sort(known)
	return slices.Compact(known), paused, err
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}

// forget removes what is remembered of a repository; also of one that is gone.
func (c *command) forget(ctx context.Context) error {
	name, err := mirrorcfg.CleanRepo(c.Forget.Repo)
	if err != nil {
		return err
	}
	switch f := c.Forget; {
	case f.From != "":
		return c.forgetInVault(ctx, name)
	case f.Yes, f.AlthoughInUse, f.AtOnce, f.JSON:
		return cli.Usage{Message: "say from which vault, with --from: without it jobs and memory are forgotten, and --yes and the like mean nothing"}
	}
	n, err := c.queue.Forget(ctx, name)
	if err != nil {
		return err
	}
	_, repo, err := c.server.Find(name)
	if err == nil {
		err = forgetRefs(repo.Dir)
	}
	if err != nil && !errors.Is(err, mirrorcfg.ErrNoRepo) {
		return err
	}
	untold, err := repos.Forget(ctx, c.server, name)
	if err != nil {
		return err
	}
	more := ""
	if untold > 0 {
		more = fmt.Sprintf(", and what %d peers were still to be told", untold)
	}
	fmt.Fprintf(c.Stdout, "%s: %d jobs forgotten%s; the repository was not touched\n", name, n, more)
	return nil
}

// forgetRefs removes what is remembered of a repository's copies, and of what its
// master has set.
func forgetRefs(dir string) error {
	err := refset.Remove(dir)
	if gone := os.Remove(refset.Received(dir)); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// newPeers returns the peers, over connections that are kept, and what has to be
// called when they are not needed any more.
func (c *command) newPeers() (*peer.Peers, func()) {
	pushes := min(c.server.Worker.JobsPerPeer, maxChannels-questions)
	connections := peer.NewConnections(peer.Options{
		ChannelsPerHost: pushes + questions, PushesPerHost: pushes, ControlDir: c.server.StateDir,
		DialTimeout: min(maxDial, time.Duration(c.server.Worker.StallTimeout)),
	})
	return &peer.Peers{Server: c.server, Transport: connections, Program: program()}, connections.Close
}

// program is what records in backups call us.
func program() string { return "mirror-shell " + shell.ProgramVersion() }

// maxDial is how long a new connection may take; jobs that wait for one share it, and a
// time longer than theirs would outlive them.
const maxDial = 30 * time.Second

// maxChannels leaves room below stock sshd's MaxSessions, which is 10. Of them some are
// kept free of pushes, for what is asked meanwhile.
const (
	maxChannels = 8
	questions   = 2
)

// fileLog logs to the file in the state directory, or nowhere when it cannot be
// opened: the caller has more to do than to log.
func (c *command) fileLog() *slog.Logger {
	file, err := c.server.OpenLog()
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return logger(file)
}

// logger writes to w in the form of the log file.
func logger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
