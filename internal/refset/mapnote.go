package refset

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"mirror-shell/internal/durable"
)

// A mirror map that a slave cannot apply is told to nobody there: it was a server that pushed. So the repository
// that has the map also has, in the file mirror-shell/map.note, one line for the master's status. It is empty while a map
// is being applied for which nothing was noted before, and absent when all of it is applied: an apply that was killed
// is noticed by its empty file.

// NotePrefix begins the line by which post-receive tells a master that pushes by git's own protocol what is noted.
const NotePrefix = "mirror-shell: note for status: "

const mapNoteFile = "map.note"

// applyTime is how long an apply may be at work until it counts as killed. One of ten thousand
// repositories takes a few minutes.
const applyTime = 10 * time.Minute

// maxMapNote bounds what is read of a note, in bytes.
const maxMapNote = 1000

func mapNote(repoDir string) string { return filepath.Join(Dir(repoDir), mapNoteFile) }

// BeginMap notes that the map in a repository is about to be applied. What was noted before stays until EndMap.
func BeginMap(repoDir string) error {
	if _, err := os.Lstat(mapNote(repoDir)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return putMapNote(repoDir, "")
}

// EndMap notes what came of it: one line, which the caller has cleaned, or "" when there is nothing to tell.
func EndMap(repoDir, text string) error {
	if text != "" {
		return putMapNote(repoDir, text+"\n")
	}
	if err := os.Remove(mapNote(repoDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that the mirror map is applied: %w", err)
	}
	return nil
}

func putMapNote(repoDir, text string) error {
	err := MakeDirs(Dir(repoDir))
	if err == nil {
		err = durable.Replace(mapNote(repoDir), []byte(text))
	}
	if err != nil {
		return fmt.Errorf("note what became of the mirror map: %w", err)
	}
	return nil
}

// MapNote returns what was noted of the map in a repository, "" for nothing. A note that cannot be read is one.
func MapNote(repoDir string, now time.Time) string {
	f, err := os.OpenFile(mapNote(repoDir), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	const unknown = "whether the mirror map is applied is not known: "
	if err != nil {
		return unknown + err.Error()
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMapNote))
	if err != nil {
		return unknown + err.Error()
	}
	text, _, _ := strings.Cut(string(data), "\n")
	if info, err := f.Stat(); text == "" && err == nil && now.Sub(info.ModTime()) > applyTime {
		return "the mirror map may be applied in part: what applied it did not come to its end"
	}
	return text
}
