package shell

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

func lookPath(program string) (string, error) { return exec.LookPath(program) }

func sysExec(path string, argv, env []string) error { return syscall.Exec(path, argv, env) }

// Protocol is the version of what servers say to each other.
const Protocol = 1

// InfoReply is what `info --json` prints: one line, one object.
type InfoReply struct {
	Hostname string `json:"hostname"`
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	Verbs    []Verb `json:"verbs"`
	// Back is the first line that the asking peer answered to our `ssh PEER
	// info`, or the failure; only for `info --back`.
	Back         string       `json:"back,omitempty"`
	Repositories []Repository `json:"repositories,omitempty"` // for users
}

// Repository is a line of a user's `info`.
type Repository struct {
	Name   string `json:"name"`
	Role   string `json:"role"`
	Master string `json:"master,omitempty"`
}

// Greeting is the line by which servers know that the right one answered.
func Greeting(to, from string) string { return fmt.Sprintf("Hello %s, I am %s.", to, from) }

// greet answers info.
func (s *Session) greet(ctx context.Context, name string, user User, req Request) int {
	reply := InfoReply{Hostname: s.Server.Hostname, Version: ProgramVersion(), Protocol: Protocol, Verbs: peerVerbs}
	status := 0
	if user.name != "" {
		reply.Verbs = []Verb{Info, ReceivePack, UploadPack, UploadArchive}
		var err error
		if reply.Repositories, err = s.repositories(ctx, user); err != nil {
			told := s.Server.Hostname + ": some repositories cannot be read, please tell the administrator; the others follow"
			status = s.refuse("user "+name, hidden{told, err}) // paths are none of the user's business
		}
	}
	if req.Back {
		reply.Back = s.wayBack(ctx, name)
	}
	if req.JSON {
		if err := json.NewEncoder(s.Stdout).Encode(reply); err != nil {
			return 1
		}
		return status
	}
	fmt.Fprintln(s.Stdout, Greeting(name, s.Server.Hostname))
	if reply.Back != "" {
		fmt.Fprintln(s.Stdout, reply.Back)
	}
	for _, r := range reply.Repositories {
		line := fmt.Sprintf(" %-7s %s", r.Role, r.Name)
		if r.Role == mirrorcfg.Slave.String() {
			line += " (master: " + r.Master + ")"
		}
		fmt.Fprintln(s.Stdout, line)
	}
	return status
}

// repositories lists what the user may read, with roles. One that cannot be
// read is left out here and named in the log: a user's list is no place for it. Where
// another program decides who may read what, there is no list.
func (s *Session) repositories(ctx context.Context, user User) ([]Repository, error) {
	if s.othersDecide() {
		return nil, nil
	}
	names, err := s.Server.Repositories()
	var list []Repository
	for _, name := range names {
		if ctx.Err() != nil {
			return list, ctx.Err() // the client is gone
		}
		cfg, _, err := s.Server.OpenRepo(ctx, name)
		if err != nil {
			s.Log.Error("repository left out of info", "repository", name, "error", err)
			continue
		}
		if cmd := s.Server.Users.Authorize; len(cmd) > 0 {
			if allowed, _ := s.ask(ctx, cmd, user, Read, name); !allowed {
				continue
			}
		}
		list = append(list, Repository{Name: name, Role: cfg.Role(s.Server.Hostname).String(), Master: cfg.Master})
	}
	return list, err
}

// wayBackTimeout is enough for a slow ssh login and short enough for doctor.
const wayBackTimeout = 15 * time.Second

// wayBack runs `ssh PEER info` towards the peer that asked, so that doctor on
// either side sees both directions.
func (s *Session) wayBack(ctx context.Context, peer string) string {
	ctx, cancel := context.WithTimeout(ctx, wayBackTimeout)
	defer cancel()
	var out proc.Tail
	cmd := proc.Command(ctx, proc.Env(), proc.SSH(peer, string(Info))...)
	cmd.Stdout = &out
	if _, err := proc.Run(cmd); err != nil {
		return "failed: " + proc.OneLine(err.Error(), 300)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	return proc.OneLine(line, 200)
}
