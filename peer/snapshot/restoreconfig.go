package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"mirror-shell/internal/git"
)

const (
	configFile = "config"
	// keptConfig is the restored config's name until it is right: git must not read it before.
	keptConfig = ".mirror-shell-config"
	maxConfig  = 16 << 20 // bytes
)

// plainConfig is the config of a bare repository of that object format.
func plainConfig(format string) string {
	if format == "sha1" {
		return "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
	}
	return "[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n[extensions]\n\tobjectformat = " + format + "\n"
}

// writeConfig puts the kept config in the place of the plain one that the checks were made with. It comes
// last: from now on git would run what it says.
func (b *build) writeConfig(ctx context.Context) error {
	i := slices.IndexFunc(b.m.Files, func(f File) bool { return f.Path == configFile })
	if i < 0 {
		b.notes = append(b.notes, "the snapshot has no config: the repository got a plain one")
		return nil
	}
	if b.m.Files[i].Size > maxConfig {
		return fmt.Errorf("%w: a config of %d bytes", ErrIncomplete, b.m.Files[i].Size)
	}
	mode := fs.FileMode(b.m.Files[i].Mode) &^ 0o111
	if err := b.download(ctx, []download{{b.m.Files[i].Object, keptConfig, mode}}); err != nil {
		return err
	}
	file := filepath.Join(b.dir, keptConfig)
	if err := b.adaptConfig(ctx, file, mode); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close(), b.root.Rename(keptConfig, configFile)); err != nil {
		return err
	}
	return b.share(ctx)
}

// adaptConfig has the kept config fit the repository, and leaves out of it what is not wanted.
func (b *build) adaptConfig(ctx context.Context, file string, mode fs.FileMode) error {
	if b.o.WithoutHooks {
		return b.harmlessConfig(ctx, file, mode)
	}
	data, err := os.ReadFile(file)
	if err != nil || b.m.ObjectFormat == "sha1" && !formatInConfig(data) {
		return err
	}
	if err := git.SetFormat(ctx, file, b.m.ObjectFormat); err != nil {
		if ctx.Err() != nil {
			return err
		}
		// A config that git cannot read was useless where it comes from too.
		b.notes = append(b.notes, fmt.Sprintf("the config of the snapshot cannot be adapted, and is kept as config.broken: %v", err))
		if err := b.root.Rename(keptConfig, "config.broken"); err != nil {
			return err
		}
		return b.write(keptConfig, mode, plainConfig(b.m.ObjectFormat))
	}
	return nil
}

var plainVersion = regexp.MustCompile(`(?m)^[ \t]*repositoryformatversion[ \t]*=[ \t]*[01][ \t]*\r?$`)

// formatInConfig reports whether a config may say something about the repository's format that is not
// plain. It may be wrong only by saying yes: a key cannot be written without its letters.
func formatInConfig(data []byte) bool {
	data = bytes.ToLower(data)
	for _, word := range []string{"objectformat", "refstorage", "worktreeconfig"} {
		if bytes.Contains(data, []byte(word)) {
			return true
		}
	}
	return bytes.Count(data, []byte("repositoryformatversion")) != len(plainVersion.FindAll(data, -1))
}

// harmless are the keys of a config that decide what happens to pushes, fetches and mirroring, and
// that make git run nothing, include nothing, and look nowhere else.
var harmless = regexp.MustCompile(`^(gitolite\.mirror\.[^\n]*|core\.(bare|filemode|sharedrepository|logallrefupdates)|gitweb\.(owner|description|category)|` +
	`receive\.(deny[a-z]+|fsckobjects|hiderefs|unpacklimit|maxinputsize)|transfer\.(hiderefs|fsckobjects|unpacklimit)|` +
	`uploadpack\.(hiderefs|allow[a-z0-9]+)|http\.(receivepack|uploadpack)|gc\.(auto|autopacklimit|pruneexpire|reflogexpire|reflogexpireunreachable)|` +
	`pack\.(window|depth|threads|windowmemory))$`)

// harmlessConfig writes the config anew, with the keys that are known to be harmless.
func (b *build) harmlessConfig(ctx context.Context, file string, mode fs.FileMode) error {
	entries, err := git.FileConfig(ctx, file)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.notes = append(b.notes, fmt.Sprintf("the config of the snapshot cannot be read, and was left out: %v", err))
	}
	var out strings.Builder
	out.WriteString(plainConfig(b.m.ObjectFormat))
	var left []string
	for _, e := range entries {
		switch {
		case e.Key == "core.repositoryformatversion" || e.Key == "core.bare" || e.Key == "core.filemode" || strings.HasPrefix(e.Key, "extensions."):
		case harmless.MatchString(e.Key) && !strings.ContainsRune(e.Value, 0):
			writeEntry(&out, e)
		case !slices.Contains(left, e.Key):
			left = append(left, e.Key)
		}
	}
	if len(left) > 0 {
		b.notes = append(b.notes, fmt.Sprintf("left out of the config: %q", some(left)))
	}
	if err := b.root.Remove(keptConfig); err != nil {
		return err
	}
	return b.write(keptConfig, mode, out.String())
}

// writeEntry writes one value as git reads it back.
func writeEntry(out *strings.Builder, e git.ConfigEntry) {
	first, last := strings.Index(e.Key, "."), strings.LastIndex(e.Key, ".")
	section, name := e.Key[:first], e.Key[last+1:]
	if first < last {
		section += ` "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(e.Key[first+1:last]) + `"`
	}
	out.WriteString("[" + section + "]\n\t" + name)
	if !e.Implicit {
		out.WriteString(` = "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\b", `\b`).Replace(e.Value) + `"`)
	}
	out.WriteString("\n")
}

// share gives all files and directories the modes that core.sharedRepository of the restored config asks for.
func (b *build) share(ctx context.Context) error {
	data, err := b.readSmall(configFile)
	if err != nil || !bytes.Contains(bytes.ToLower(data), []byte("sharedrepository")) {
		return err
	}
	entries, err := git.FileConfig(ctx, filepath.Join(b.dir, configFile))
	if err != nil {
		return ctx.Err() // it is as broken as it was
	}
	value := ""
	for _, e := range entries {
		if e.Key == "core.sharedrepository" {
			if value = e.Value; e.Implicit {
				value = "true"
			}
		}
	}
	add, exact := sharedMode(value)
	if add == 0 {
		return nil
	}
	return fs.WalkDir(b.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return b.root.Chmod(name, shared(info.Mode(), add, exact))
	})
}

func (b *build) readSmall(name string) ([]byte, error) {
	f, err := b.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxConfig))
}

// sharedMode reads core.sharedRepository: the permissions that are added, or (exact) set.
func sharedMode(value string) (add fs.FileMode, exact bool) {
	switch strings.ToLower(value) {
	case "group", "true", "yes", "on", "1":
		return 0o660, false
	case "all", "world", "everybody", "2":
		return 0o664, false
	}
	n, err := strconv.ParseUint(value, 8, 32)
	if err != nil || n&0o600 != 0o600 { // git refuses what locks out the owner
		return 0, false
	}
	return fs.FileMode(n & 0o666), true
}

// shared is a mode with the permissions of a shared repository: what the owner may not write nobody may, what
// the owner may execute all may who may read, and directories hand on their group.
func shared(mode, add fs.FileMode, exact bool) fs.FileMode {
	perm := mode.Perm()
	if perm&0o200 == 0 {
		add &^= 0o222
	}
	if perm&0o100 != 0 || mode.IsDir() {
		add |= add & 0o444 >> 2
	}
	if exact {
		perm = 0
	}
	perm |= add
	if mode.IsDir() {
		return perm | fs.ModeSetgid
	}
	return perm
}
