package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// userKeys makes the users' lines in authorized_keys those of the directory of
// keys that belongs to the map, where there is one. Whatever goes wrong is told,
// and does not stop the map.
func (a *applying) userKeys(ctx context.Context) {
	keys, where, err := a.readUserKeys(ctx)
	if where == "" {
		return
	}
	if err == nil {
		var file shell.AuthorizedKeys
		if file, err = a.mapKeys(a.server, a.Apply.AuthorizedKeys); err == nil {
			var done shell.KeySync
			if done, err = file.SyncUsers(keys, a.result.DryRun); err == nil {
				a.result.Keys = &done
				a.tellKeys(where, done)
				return
			}
		}
	}
	a.failed, a.keysErr = true, fmt.Errorf("%s: %w", where, err)
	fmt.Fprintf(a.Stderr, "mirror-shell: no user's key is changed: %s: %s\n", where, proc.OneLine(err.Error(), maxLine))
}

// mapKeys is authorized_keys with the forced command that lines from the map get, the same
// whoever applies it: the hook, which always names the configuration, or a person.
func (p *Program) mapKeys(server *mirrorcfg.Server, file string) (shell.AuthorizedKeys, error) {
	keys, err := p.keys(file)
	if err != nil {
		return keys, err
	}
	keys.Command = []string{p.Sibling("mirror-shell")}
	if usual, err := mirrorcfg.DefaultFile(); err != nil || usual != server.File {
		keys.Command = append(keys.Command, "--config", server.File)
	}
	return keys, nil
}

// readUserKeys reads the directory of keys; where says which it is, "" for none.
func (a *applying) readUserKeys(ctx context.Context) (keys shell.UserKeys, where string, err error) {
	switch {
	case a.Apply.FromRepository && a.server.Map.Keys != "":
		where = a.server.Map.Keys
		keys, err = repositoryKeys(ctx, a.server)
	case a.Apply.Keys != "":
		where = a.Apply.Keys
		keys.Files, err = dirKeys(where)
	}
	keys.RemoveAll = a.Apply.RemoveAllKeys
	return keys, where, err
}

// repositoryKeys reads them from HEAD of the map's repository.
func repositoryKeys(ctx context.Context, server *mirrorcfg.Server) (keys shell.UserKeys, err error) {
	_, repo, err := server.Find(server.Map.Repository)
	if err != nil {
		return keys, fmt.Errorf("map.repository: %w", err)
	}
	files, err := repo.TreeFiles(ctx, server.Map.Keys, shell.MaxUserKeys, shell.MaxUserKeyFile)
	if err != nil {
		return keys, fmt.Errorf("map.repository %s: %w", server.Map.Repository, err)
	}
	for _, f := range files {
		keys.Files = append(keys.Files, shell.UserKeyFile(f))
	}
	keys.Absent = len(files) == 0 // git knows no empty directories
	return keys, nil
}

// dirKeys reads them from a directory, and follows no link in it.
func dirKeys(dir string) ([]shell.UserKeyFile, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(real)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var files []shell.UserKeyFile
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		case len(files) == shell.MaxUserKeys:
			return fmt.Errorf("more than %d files", shell.MaxUserKeys)
		}
		f := shell.UserKeyFile{Path: name}
		if d.Type().IsRegular() && path.Ext(name) == ".pub" {
			f.Data, f.Err = readBounded(root, name)
		} else if !d.Type().IsRegular() {
			f.Err = errors.New("not a plain file")
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// readBounded reads a little more than a key file may have: who judges it sees that.
func readBounded(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, shell.MaxUserKeyFile+1))
}

// tellKeys says what was done, to who has pushed or typed it.
func (a *applying) tellKeys(where string, done shell.KeySync) {
	changes := done.Changes
	if most := a.Apply.Most; most > 0 && len(changes) > most {
		changes = slices.Clone(changes[:most])
	}
	if !a.Apply.JSON {
		for _, c := range changes {
			fmt.Fprintf(a.Stdout, "user %s %s: %s %s from %s\n", c.Name, c.What, c.Type, c.Fingerprint, path.Join(where, c.Source))
		}
		if over := len(done.Changes) - len(changes); over > 0 {
			fmt.Fprintf(a.Stdout, "and %d more keys\n", over)
		}
	}
	for _, line := range done.Problems {
		fmt.Fprintf(a.Stderr, "mirror-shell: %s: %s\n", where, proc.OneLine(line, maxLine))
	}
	for _, line := range done.Notes {
		fmt.Fprintf(a.Stderr, "mirror-shell: note: %s: %s\n", where, proc.OneLine(line, maxLine))
	}
	if done.Held != "" {
		fmt.Fprintf(a.Stderr, "mirror-shell: %s: held, no user's key is changed on %s: %s: correct it, or, to let it through there, run mirror-shell apply %s --remove-all-keys\n",
			where, a.server.Hostname, done.Held, a.again())
	}
	a.failed = a.failed || done.Held != "" || len(done.Problems) > 0
}

// again is how this apply is asked for.
func (a *applying) again() string {
	if a.Apply.FromRepository {
		return "--from-repository"
	}
	return a.Apply.Map + " --keys " + a.Apply.Keys
}
