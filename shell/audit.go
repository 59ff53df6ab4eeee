package shell

// The audit log: who sent what, from where, and what came of it.
//
// It is written for every command of a peer or user that reaches us. Each event is
// one JSON object on one line, in state_dir/audit.log or in the journal:
//
//	time        RFC 3339, UTC, to the nanosecond
//	event       command: a decision was made; end: a session is over; login: nobody
//	            was let in (built-in server only)
//	server      our hostname
//	session     eight digits that the lines of one session share
//	peer        the peer whose key it was
//	user        the user who acts: whose key it was or, of a redirected push, as the
//	            peer says
//	via         the peer that redirected the user's push here
//	program     gitolite-shell: the push came in by that. One of a session of ours
//	            that was handed over to gitolite-shell has two lines, and this is
//	            in the second
//	key         the key's fingerprint; under sshd only with ExposeAuthInfo yes
//	from        the client's ADDRESS:PORT
//	verb        what was asked for; git-receive-pack of a redirected push, too
//	repository  its name
//	command     as it was sent, where it could not be understood
//	result      allowed or refused; not in end
//	reason      why it was refused, or failed
//	cause       what the client was not told of that
//	redirect    the master to which the push is handed over
//	status      end: the exit status
//	seconds     end: how long that was after the decision
//	left_out    login: how many like it were not written before it
//
// A field without a value is left out. Under sshd most sessions become git or ssh
// once they are allowed, and nothing of ours is left to see the end: only the
// sessions that we serve ourselves, and all of the built-in server, have an end.
//
// What comes from elsewhere is bounded, and characters that cannot be seen are
// written as escapes, so that no client can write a line, or onto the terminal of who
// reads it.

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"
)

// trail is what a session has to say to the audit log.
type trail struct {
	peer, user string // whose key it is
	program    string // by which it came in, "" for ours
	request    Request
	begun      time.Time
	session    string
	allowed    bool   // the command is being carried out
	reason     string // of a failure after that
	failed     bool   // a line could not be written
}

// Events of the audit log.
const (
	auditCommand = "command"
	auditEnd     = "end"
	auditLogin   = "login"
)

// Bounds of what is written, in bytes before escaping.
const (
	maxAuditCommand = 200
	maxAuditReason  = 500
	maxAuditName    = 512 // as long as names may be
)

// auditAllowed tells that the command is carried out.
func (s *Session) auditAllowed(who string, d Decision) {
	written := s.audited(auditCommand, text("result", "allowed"), text("redirect", redirectTarget(d)))
	if s.trail.allowed = true; written {
		return
	}
	req := s.trail.request
	s.Log.Info("accepted", "who", who, "from", s.From, "verb", string(req.Verb), "repository", req.Repo, "user", d.User.name)
}

// byGitolite is what the audit log calls the program of a push that AuditPush tells of.
const byGitolite = "gitolite-shell"

// AuditPush tells of a user's push that came in by gitolite-shell: that it goes on there, or
// why it is refused. One that is passed on to the master becomes a session of ours, which
// tells of it. User and repo are as gitolite has them.
func (s *Session) AuditPush(user, repo string, refused error) {
	s.trail.user, s.trail.program, s.trail.request = user, byGitolite, Request{Verb: ReceivePack, Repo: repo}
	if refused != nil {
		s.auditRefused("user "+user, refused)
		return
	}
	s.auditAllowed("user "+user, Decision{Action: RunGit, User: User{user}})
}

func redirectTarget(d Decision) string {
	if d.Action == Redirect {
		return d.Host
	}
	return ""
}

// auditRefused tells why the command is not carried out, or, when it had been
// allowed, remembers why it failed.
func (s *Session) auditRefused(who string, reason error) {
	cause := ""
	if h := (hidden{}); errors.As(reason, &h) {
		cause = h.cause.Error()
	}
	fields := []slog.Attr{text("result", "refused"), text("reason", clip(reason.Error(), maxAuditReason)), text("cause", clip(cause, maxAuditReason))}
	if s.trail.request.Repo == "" {
		fields = append(fields, text("command", clip(s.Command, maxAuditCommand)))
	}
	if s.trail.allowed {
		s.trail.reason = reason.Error()
		if cause != "" {
			s.trail.reason += ": " + cause
		}
		if s.Audit != nil {
			return
		}
	} else if s.audited(auditCommand, fields...) {
		return
	}
	args := []any{"who", who, "from", s.From, "command", fmt.Sprintf("%.200q", s.Command), "reason", reason.Error()}
	if cause != "" {
		args = append(args, "cause", cause)
	}
	s.Log.Warn("refused", args...)
}

// auditEnd tells how a session ended that was allowed, and in which we stayed.
func (s *Session) auditEnd(status *int) {
	if !s.trail.allowed || s.Audit == nil {
		return
	}
	took := time.Since(s.trail.begun).Seconds()
	if !s.audited(auditEnd, slog.Int("status", *status), slog.Float64("seconds", float64(int(took*1000))/1000), text("reason", clip(s.trail.reason, maxAuditReason))) {
		s.Log.Info("ended", "who", s.trail.peer+s.trail.user, "status", *status, "seconds", took)
	}
}

// audited writes a line with these fields after those of the session, and reports
// whether that was done. The session goes on in any case; that a line is missing
// is told to the log, to the client, and by the file that doctor looks for.
func (s *Session) audited(event string, fields ...slog.Attr) bool {
	if s.Audit == nil {
		return false
	}
	t := &s.trail
	if t.session == "" {
		t.begun, t.session = time.Now(), fmt.Sprintf("%08x", rand.Uint32())
	}
	err := s.Audit(auditLine(s.Server.Hostname, event, append(t.fields(s.Key, s.From), fields...)))
	if err == nil {
		return true
	}
	if t.failed { // it has been told
		return false
	}
	t.failed = true
	s.Log.Error("the audit log cannot be written", "error", err)
	fmt.Fprintf(s.Stderr, "mirror-shell: %s: the audit log cannot be written, please tell the administrator\n", s.Server.Hostname)
	return false
}

// fields are those that every line of a session has.
func (t *trail) fields(key, from string) []slog.Attr {
	user, via, verb := t.user, "", t.request.Verb
	if verb == RedirectedPush {
		verb = ReceivePack
		if t.peer != "" {
			user, via = t.request.User, t.peer
		}
	}
	return []slog.Attr{text("session", t.session), text("peer", t.peer), text("user", user), text("via", via), text("program", t.program),
		text("key", key), text("from", addressPort(from)), text("verb", string(verb)), text("repository", t.request.Repo)}
}

// stranger tells, not too often, of somebody who was not let in.
func (s *SSHServer) stranger(level slog.Level, what string, from net.Addr, reason string) {
	if s.Audit == nil {
		s.strangers.log(s.Log, level, what, "from", from, "reason", reason)
		return
	}
	leftOut, ok := s.strangers.take(time.Now())
	if !ok {
		return
	}
	reason = clip(what+": "+reason, maxAuditReason)
	fields := []slog.Attr{text("from", from.String()), text("result", "refused"), text("reason", reason)}
	if leftOut > 0 {
		fields = append(fields, slog.Int("left_out", leftOut))
	}
	if err := s.Audit(auditLine(s.Server.Hostname, auditLogin, fields)); err != nil {
		s.troubles.log(s.Log, slog.LevelError, "the audit log cannot be written", "error", err, "from", from, "reason", reason)
	}
}
