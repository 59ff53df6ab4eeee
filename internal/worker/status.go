package worker

import (
	"context"
	"fmt"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/notify"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/status"
)

// status shows the table.
func (c *command) status(ctx context.Context) error {
	report, err := status.Collect(ctx, c.server, c.queue, c.Status.Repositories)
	if err != nil {
		return err
	}
	report.Warnings = append(report.Warnings, c.lossWarning()...)
	report.Warnings = append(report.Warnings, c.inboxWarnings()...)
	report.Warnings = append(report.Warnings, c.idleWarning(report)...)
	report.Warnings = append(report.Warnings, notify.Warnings(c.server)...)
	c.tellSchedules(report, time.Now())
	failing := false
	if c.Status.Failing {
		failing = report.KeepFailing()
	}
	if c.Status.JSON {
		err = report.JSON(c.Stdout)
	} else if !c.Status.Failing || failing {
		err = report.Table(c.Stdout, time.Now())
	}
	if err == nil && failing {
		return cli.Exit(1)
	}
	return err
}

// idleWarning tells of jobs that wait while nobody works.
func (c *command) idleWarning(report *status.Report) []string {
	waiting := 0
	for _, line := range report.Lines {
		if line.State == string(queue.StateWaiting) {
			waiting++
		}
	}
	if _, running, err := queue.WorkerHolder(c.server.StateDir); waiting == 0 || running || err != nil {
		return nil
	}
	return []string{fmt.Sprintf("%d jobs wait and no worker runs: start mirror-shell serve, or run mirror-shell drain", waiting)}
}

// inboxWarnings tells of events that have not reached the table.
func (c *command) inboxWarnings() []string {
	box := inbox.New(c.server.StateDir)
	var warnings []string
	if bad, err := box.Bad(); err != nil {
		warnings = append(warnings, "inbox: "+err.Error())
	} else if len(bad) > 0 {
		warnings = append(warnings, fmt.Sprintf("%d events could not be read and were put aside in %s/bad: run mirror-shell sync, then delete them", len(bad), box.Dir()))
	}
	if waiting, err := box.List(); err == nil && len(waiting) > 0 {
		if _, running, _ := queue.WorkerHolder(c.server.StateDir); !running {
			warnings = append(warnings, fmt.Sprintf("%d pushes wait in the inbox and no worker runs: start mirror-shell serve, or run mirror-shell drain", len(waiting)))
		}
	}
	return warnings
}
