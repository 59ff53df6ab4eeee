package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
)

// trash lists what was deleted, or does something about it.
func (p *Program) trash(ctx context.Context) error {
	cmd := p.Trash
	if cmd.As != "" && cmd.Restore == "" {
		return Usage{"--as goes with --restore"}
	}
	server, err := p.Server()
	if err != nil {
		return err
	}
	switch {
	case cmd.Restore != "":
		e, err := repos.Restore(ctx, server, cmd.Restore, cmd.As)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.Stdout, "%s is back%s\n", e.Name, p.afterRestore(ctx, server, e))
		return nil
	case cmd.Expire != nil && *cmd.Expire < 0:
		return Usage{"--expire: write a duration such as 2160h"}
	case cmd.Expire != nil:
		gone, err := repos.Expire(ctx, server, time.Now().Add(-*cmd.Expire))
		for _, e := range gone {
			fmt.Fprintf(p.Stdout, "%s %s destroyed\n", e.ID, e.Name)
		}
		return err
	}
	return p.listTrash(server)
}

// afterRestore says what is still to be done about a repository that was put back.
func (p *Program) afterRestore(ctx context.Context, server *mirrorcfg.Server, e repos.Entry) string {
	cfg, _, err := server.OpenRepo(ctx, e.Name)
	switch {
	case err != nil || cfg.Role(server.Hostname) == mirrorcfg.Local:
		return ""
	case cfg.Role(server.Hostname) == mirrorcfg.Slave:
		return fmt.Sprintf("; its master is %s, which does not know of that", cfg.Master)
	}
	return fmt.Sprintf("; its copies come back with: mirror-shell sync %s", e.Name)
}

// Trashed is one line of trash --json.
type Trashed struct {
	repos.Entry
	Bytes int64 `json:"bytes"`
}

func (p *Program) listTrash(server *mirrorcfg.Server) error {
	list, err := repos.Trash(server)
	all := []Trashed{}
	for _, e := range list {
		size, _ := repos.Size(server, e.ID) // of what is just being destroyed, less
		all = append(all, Trashed{e, size})
	}
	if p.Trash.JSON {
		if encodeErr := json.NewEncoder(p.Stdout).Encode(all); encodeErr != nil {
			return encodeErr
		}
		return err
	}
	tw := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	for _, e := range all {
		by := "here"
		if e.By != "" {
			by = "by its master " + e.By
		}
		fmt.Fprintf(tw, "%s\t%s\t%d KiB\tdeleted %s\n", e.ID, e.Name, (e.Bytes+1023)>>10, by)
	}
	if flushErr := tw.Flush(); flushErr != nil {
		return flushErr
	}
	return err
}
