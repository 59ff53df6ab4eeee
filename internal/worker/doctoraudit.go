package worker

import (
	"fmt"
	"os"
	"time"

	"mirror-shell/mirrorcfg"
)

// auditLog reports whether every command leaves its line.
func auditLog(server *mirrorcfg.Server) Finding {
	const check = "audit log"
	if !server.Log.Audit {
		return Finding{check, warn, "turned off", "take audit = false out of [log] in " + server.File}
	}
	if info, err := os.Stat(server.AuditFailed()); err == nil {
		return Finding{check, fail, "lines are missing since " + info.ModTime().UTC().Format(time.RFC3339),
			fmt.Sprintf("make room, or mend what is in the way; then rm %s", server.AuditFailed())}
	}
	if err := server.CheckAudit(); err != nil {
		return Finding{check, fail, err.Error(), "make it writable for this account"}
	}
	if server.Log.Target == mirrorcfg.LogJournal {
		return Finding{check, ok, "in the journal (journalctl -t mirror-shell-audit)", ""}
	}
	return Finding{check, ok, server.AuditFile(), ""}
}
