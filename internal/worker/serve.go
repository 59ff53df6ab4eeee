package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"mirror-shell/hooks"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/metrics"
	"mirror-shell/internal/notify"
	"mirror-shell/internal/queue"
	"mirror-shell/peer"
	"mirror-shell/shell"
)

// newWorker makes the worker that serve and drain run.
func (c *command) newWorker(peers *peer.Peers, notifier *notify.Notifier, log *slog.Logger) *queue.Worker {
	return &queue.Worker{
		Queue: c.queue, Inbox: inbox.New(c.server.StateDir), Run: heard(notifier, job(peers, io.Discard, c.metrics)), Rebuild: c.rebuilder(log),
		Jobs: c.server.Worker.Jobs, JobsPerPeer: c.server.Worker.JobsPerPeer, Log: log,
	}
}

// serve runs the worker, and the built-in ssh server where it is configured, as
// a daemon. Its log goes to standard error, for the journal, or to [log] file.
func (c *command) serve(ctx context.Context) (err error) {
	schedules, err := c.schedules()
	if err != nil {
		return err
	}
	if c.queue, err = openPatiently(ctx, c.server); err != nil {
		return err
	}
	defer c.queue.Close()
	to, err := c.server.DaemonLog(c.Stderr)
	if err != nil {
		return err
	}
	log := logger(to)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ssh, err := c.startSSH(ctx, cancel, log)
	if err != nil {
		return err
	}
	c.metrics = metrics.New(scheduledRows{c}, c.scheduleMetrics, c.server.Hostname, shell.ProgramVersion())
	http, err := c.startHTTP(ctx, cancel, c.metrics, log)
	if err != nil {
		return err
	}
	log.Info("serving", "hostname", c.server.Hostname, "config", c.server.File, "state_dir", c.server.StateDir)
	peers, stop := c.newPeers()
	defer stop()
	c.serving = time.Now()
	unschedule := c.keepSchedules(ctx, schedules, peers, log)
	notifier, quiet := c.notifyMeanwhile(ctx, 0, log)
	err = c.newWorker(peers, notifier, log).Serve(ctx)
	quiet()
	unschedule()
	cancel(nil)
	<-ssh
	<-http
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// startSSH starts the built-in ssh server. The channel is closed when it has
// ended; a failure of it ends everything, because a daemon that runs half is
// believed to run.
func (c *command) startSSH(ctx context.Context, fail context.CancelCauseFunc, log *slog.Logger) (<-chan struct{}, error) {
	ended := make(chan struct{})
	if c.server.SSH.Listen == "" {
		close(ended)
		return ended, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", c.server.SSH.Listen)
	if err != nil {
		return nil, fmt.Errorf("ssh.listen: %w", err)
	}
	server := &shell.SSHServer{
		Server: c.server, Keys: shell.AuthorizedKeys{Path: filepath.Join(home, ".ssh/authorized_keys")},
		Mirrord: c.Sibling("mirrord"), Log: log, InstallHooks: c.InstallHooksIn,
	}
	if c.server.Log.Audit {
		server.Audit = c.server.AppendAudit
	}
	log.Info("ssh server listens", "address", l.Addr())
	go func() {
		defer close(ended)
		if err := server.Serve(ctx, l); err != nil {
			fail(fmt.Errorf("ssh server: %w", err))
		}
	}()
	return ended, nil
}

// drain runs the worker until the queue is idle. It is started by a hook or by a
// timer, with nobody reading what it writes, so it logs to the file. That
// another worker runs already is no failure: that one does the work.
func (c *command) drain(ctx context.Context) (err error) {
	file, err := c.server.OpenLog()
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer file.Close()
	log := logger(file)
	if c.queue, err = openPatiently(ctx, c.server); err != nil {
		log.Error("drain cannot work", "error", err)
		return err
	}
	defer c.queue.Close()
	peers, stop := c.newPeers()
	defer stop()
	notifier, quiet := c.notifyMeanwhile(ctx, time.Minute, log)
	err = c.newWorker(peers, notifier, log).Drain(ctx)
	quiet()
	if !errors.Is(err, queue.ErrBusy) { // else it is the other's business
		c.notifyAfter(ctx, notifier)
	}
	if err != nil && !errors.Is(err, queue.ErrBusy) && ctx.Err() == nil {
		log.Error("drain ended", "error", err)
		return err
	}
	return nil
}

// wake has a worker look at the queue: the one that runs, or a new drain.
func (c *command) wake() error { return hooks.Wake(c.server, c.Programs) }
