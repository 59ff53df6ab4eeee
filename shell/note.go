package shell

import (
	"context"
	"strings"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/gitolite"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// A repository may say how a server is to be run: gitolite-admin, and the one with the mirror map. That a push of it
// arrived is not all then: what the server could not make of it is a note in the master's status.

// HasNote reports whether Note may have something to say of a repository.
func HasNote(server *mirrorcfg.Server, repository string) bool {
	return repository != "" && (repository == server.Map.Repository || server.Gitolite.Programs != "" && repository == gitolite.AdminRepo)
}

// Note says what this server could not make of what stands in a repository, in one line; "" for nothing. It is for the
// master of the repository alone.
func Note(ctx context.Context, server *mirrorcfg.Server, repository string, repo git.Repo) string {
	var parts []string
	if server.Gitolite.Programs != "" && repository == gitolite.AdminRepo {
		parts = append(parts, gitolite.NotCompiled(ctx))
	}
	if repository == server.Map.Repository {
		parts = append(parts, refset.MapNote(repo.Dir, time.Now()))
	}
	return strings.Trim(strings.Join(parts, "; "), "; ")
}
