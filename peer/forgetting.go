package peer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mirror-shell/internal/durable"
)

// What this server was told to remove from a vault stands in its own state directory, as a file of lines: the
// repository's name, and the Sum of each snapshot that was there. A vault's word for it is not taken, as others may write there.

func forgettingFile(stateDir, name, repository string) string {
	sum := sha256.Sum256([]byte(repository))
	return filepath.Join(stateDir, "forgetting", name, hex.EncodeToString(sum[:16]))
}

// toForget returns the Sums. What cannot be read is not forgotten.
func toForget(stateDir, name, repository string) map[string]bool {
	data, err := os.ReadFile(forgettingFile(stateDir, name, repository))
	if err != nil {
		return nil
	}
	lines := strings.Fields(string(data))
	sums := map[string]bool{}
	for _, sum := range lines[min(1, len(lines)):] {
		sums[sum] = true
	}
	return sums
}

// NoteForgetting notes that this server is told to remove these snapshots, by their Sums, of a repository from the vault of
// a backup peer: its prune goes by that where the store retains some. Without any the note goes.
func (p *Peers) NoteForgetting(name, repository string, sums []string) error {
	file := forgettingFile(p.Server.StateDir, name, repository)
	if len(sums) == 0 {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := durable.MakeDirs(filepath.Dir(file)); err != nil {
		return err
	}
	return durable.Replace(file, []byte(repository+"\n"+strings.Join(sums, "\n")+"\n"))
}
