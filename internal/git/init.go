package git

import (
	"context"
	"fmt"

	"mirror-shell/internal/proc"
)

// Init makes a new bare repository in dir, which is not there yet or empty, with
// that object format ("sha1" or "sha256"), from the account's template.
func Init(ctx context.Context, dir, format string) (Repo, error) {
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), "git", "init", "-q", "--bare", "--object-format="+format, "--", dir)
	if _, err := proc.Run(cmd); err != nil {
		return Repo{}, fmt.Errorf("git init: %w", err)
	}
	return Repo{Dir: dir}, nil
}
