// Package refcache tells how all repositories of a server stand, fast: their
// configuration, the digest of their refs and HEAD, read in this process where that is
// possible and remembered by the time stamps of the files they were read from. A look at ten thousand
// repositories of which nothing has changed costs no process and opens no file.
package refcache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/internal/meta"
	"mirror-shell/mirrorcfg"
)

// State is what two servers compare of a repository.
type State struct {
	Config *mirrorcfg.Repo
	Dir    string // of the repository
	Digest string // of the mirrored refs
	Head   string // what HEAD points to; "" when it is detached
	Meta   string // hash of the metadata (see package meta); "" when there is none
}

// Cache remembers the state of repositories together with the stamps of the
// files that it was made from, so that looking at an unchanged repository is a
// few calls of stat, and no process. It is one JSON file, and only a cache: a
// missing or damaged one is an empty one, and two processes that save at once
// lose work, never truth.
//
// The configuration is made from the files that git names as its origin, and
// from those that git would read if they existed; one that depends on anything
// else (includeIf with another condition than gitdir) is not remembered.
type Cache struct {
	file string

	mu      sync.Mutex
	entries map[string]*entry // by the repository's directory
	shared  map[string]stamp  // of files outside repositories, looked at once
	changed bool
}

// entry is one repository in the cache.
type entry struct {
	Name         string            `json:"name"`
	Config       []git.ConfigEntry `json:"config"` // keys of ours only
	ConfigStamps []stamp           `json:"config_stamps"`
	Refs         string            `json:"refs"` // gitolite.mirror.refs, which Digest depends on
	RefStamps    []stamp           `json:"ref_stamps"`
	Digest       string            `json:"digest"`
	Head         string            `json:"head"`
	MetaStamps   []stamp           `json:"meta_stamps"`
	Meta         string            `json:"meta,omitempty"`
}

// cacheVersion changes with the meaning of anything in the file.
const cacheVersion = 2

type cacheFile struct {
	Version int               `json:"version"`
	Entries map[string]*entry `json:"entries"`
}

// OpenCache reads the cache of a server from its state directory.
func OpenCache(stateDir string) *Cache {
	c := &Cache{file: filepath.Join(stateDir, "digests.json"), entries: map[string]*entry{}, shared: map[string]stamp{}}
	data, err := os.ReadFile(c.file)
	var stored cacheFile
	if err == nil && json.Unmarshal(data, &stored) == nil && stored.Version == cacheVersion && stored.Entries != nil {
		c.entries = stored.Entries
	}
	return c
}

// Save writes the cache, if anything in it is new.
func (c *Cache) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.changed {
		return nil
	}
	data, err := json.Marshal(cacheFile{cacheVersion, c.entries})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.file), 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(c.file), ".digests-") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(data)
	if err = errors.Join(err, temp.Close()); err != nil {
		return fmt.Errorf("save digests: %w", err)
	}
	c.changed = false
	return os.Rename(temp.Name(), c.file)
}

// Load returns the state of a repository of the server. When only its refs cannot
// be read, the state with an error has the Config. Safe for concurrent use.
func (c *Cache) Load(ctx context.Context, server *mirrorcfg.Server, name string) (State, error) {
	began := time.Now()
	clean, repo, err := server.Find(name)
	if err != nil {
		return State{}, err
	}
	c.mu.Lock()
	known := c.entries[repo.Dir]
	c.mu.Unlock()
	if known == nil {
		known = &entry{}
	}
	fresh := *known
	fresh.Name = clean
	sameConfig := c.same(repo.Dir, known.ConfigStamps)
	if !sameConfig {
		if fresh.Config, fresh.ConfigStamps, err = c.readConfig(ctx, repo); err != nil {
			return State{}, fmt.Errorf("configuration of %s: %w", clean, err)
		}
	}
	cfg, err := mirrorcfg.ParseRepo(clean, fresh.Config)
	if err != nil {
		return State{}, fmt.Errorf("configuration of %s: %w", clean, err)
	}
	if fresh.Refs != cfg.Refs || !unchanged(known.RefStamps) {
		fresh.Refs = cfg.Refs
		if err := fresh.readRefs(ctx, repo, cfg); err != nil {
			return State{Config: cfg}, fmt.Errorf("%s: %w", clean, err)
		}
	}
	if !sameConfig || !unchanged(known.MetaStamps) {
		if err := fresh.readMeta(repo, cfg); err != nil {
			return State{Config: cfg}, fmt.Errorf("%s: %w", clean, err)
		}
	}
	c.store(repo.Dir, known, fresh, began)
	return State{cfg, repo.Dir, fresh.Digest, fresh.Head, fresh.Meta}, nil
}

// store keeps what was old enough to be relied on when it was read.
func (c *Cache) store(dir string, known *entry, fresh entry, now time.Time) {
	if !settled(fresh.ConfigStamps, now) {
		fresh.ConfigStamps = nil
	}
	if !settled(fresh.RefStamps, now) {
		fresh.RefStamps = nil
	}
	if !settled(fresh.MetaStamps, now) {
		fresh.MetaStamps = nil
	}
	same := func(a, b []stamp) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
	if same(known.ConfigStamps, fresh.ConfigStamps) && same(known.RefStamps, fresh.RefStamps) && same(known.MetaStamps, fresh.MetaStamps) && known.Name == fresh.Name {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[dir], c.changed = &fresh, true
}

// readRefs reads refs and HEAD. The stamps are taken first: what changes while
// the refs are read makes them differ at the next look.
func (e *entry) readRefs(ctx context.Context, repo git.Repo, cfg *mirrorcfg.Repo) error {
	stamps, err := refStamps(repo.Dir)
	if err != nil {
		return err
	}
	refs, err := readRefs(ctx, repo)
	if err != nil {
		return err
	}
	head, err := repo.Head(ctx)
	if err != nil {
		return err
	}
	e.RefStamps, e.Digest, e.Head = stamps, digest.Of(cfg.MirroredRefs(refs)), head
	return nil
}

// readMeta reads the metadata, stamps first.
func (e *entry) readMeta(repo git.Repo, cfg *mirrorcfg.Repo) error {
	var stamps []stamp
	for _, path := range meta.Files(repo) {
		s, err := stampOf(path)
		if err != nil {
			return err
		}
		stamps = append(stamps, s)
	}
	d, _, err := meta.Read(repo, cfg)
	if err != nil {
		return err
	}
	e.MetaStamps, e.Meta = stamps, d.Hash()
	return nil
}

// same looks at stamped files again; those outside the repository, which are
// the same for thousands of repositories, only once.
func (c *Cache) same(dir string, stamps []stamp) bool {
	for _, s := range stamps {
		if strings.HasPrefix(s.Path, dir+"/") {
			if now, err := stampOf(s.Path); err != nil || now != s {
				return false
			}
			continue
		}
		if now, err := c.sharedStamp(s.Path); err != nil || now != s {
			return false
		}
	}
	return len(stamps) > 0
}

func (c *Cache) sharedStamp(path string) (stamp, error) {
	c.mu.Lock()
	s, ok := c.shared[path]
	c.mu.Unlock()
	if ok {
		return s, nil
	}
	s, err := stampOf(path)
	if err == nil {
		c.mu.Lock()
		c.shared[path] = s
		c.mu.Unlock()
	}
	return s, err
}

// readConfig asks git for the whole configuration, and returns our keys and the
// stamps of every file that could change them; no stamps where that cannot be told.
func (c *Cache) readConfig(ctx context.Context, repo git.Repo) ([]git.ConfigEntry, []stamp, error) {
	paths := configFiles(repo)
	stamps := map[string]stamp{}
	for _, path := range paths { // before git reads them
		s, err := stampOf(path)
		if err != nil {
			return nil, nil, err
		}
		stamps[path] = s
	}
	entries, files, err := repo.ConfigOrigins(ctx)
	if err != nil {
		return nil, nil, err
	}
	ours := mirrorcfg.Ours(entries)
	reliable := true
	for i, e := range entries {
		included, ok := includedFile(e, files[i])
		reliable = reliable && ok
		for _, path := range []string{files[i], included} {
			if _, known := stamps[path]; path != "" && !known {
				s, err := stampOf(path)
				reliable = reliable && err == nil
				stamps[path] = s
				paths = append(paths, path)
			}
		}
	}
	if !reliable {
		return ours, nil, nil
	}
	list := make([]stamp, len(paths))
	for i, path := range paths {
		list[i] = stamps[path]
	}
	return ours, list, nil
}

// configFiles is what git reads for a repository without being told to by
// another file.
func configFiles(repo git.Repo) []string {
	files := []string{filepath.Join(repo.Dir, "config"), filepath.Join(repo.Dir, "config.worktree")}
	system := os.Getenv("GIT_CONFIG_SYSTEM")
	if system == "" {
		system = "/etc/gitconfig"
	}
	files = append(files, system)
	if global := os.Getenv("GIT_CONFIG_GLOBAL"); global != "" {
		return append(files, global)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return files
	}
	xdg := os.Getenv("XDG_CONFIG_HOME")
	if xdg == "" {
		xdg = filepath.Join(home, ".config")
	}
	return append(files, filepath.Join(xdg, "git/config"), filepath.Join(home, ".gitconfig"))
}

// includedFile returns the file that an include names, whether it exists or its
// condition holds or not; ok is false when the condition may change without any
// file that we look at.
func includedFile(e git.ConfigEntry, origin string) (path string, ok bool) {
	condition, isConditional := strings.CutPrefix(e.Key, "includeif.")
	switch {
	case e.Key == "include.path":
	case isConditional && strings.HasSuffix(e.Key, ".path"):
		if !strings.HasPrefix(condition, "gitdir:") && !strings.HasPrefix(condition, "gitdir/i:") {
			return "", false
		}
	default:
		return "", true
	}
	path = e.Value
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", false
		}
		path = filepath.Join(home, rest)
	}
	if strings.HasPrefix(path, "~") || strings.HasPrefix(path, "%(") {
		return "", false
	}
	if !filepath.IsAbs(path) {
		if origin == "" {
			return "", false
		}
		path = filepath.Join(filepath.Dir(origin), path)
	}
	return filepath.Clean(path), true
}

// LoadAll calls Load for every name, several at a time, and each with the results
// in the order of the names. An error of each ends it.
func (c *Cache) LoadAll(ctx context.Context, server *mirrorcfg.Server, names []string, each func(name string, s State, err error) error) error {
	type result struct {
		state State
		err   error
	}
	results := make([]chan result, len(names))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Int64
	var workers sync.WaitGroup
	defer workers.Wait()
	for range min(2*runtime.GOMAXPROCS(0), len(names)) {
		workers.Go(func() {
			for i := int(next.Add(1) - 1); i < len(names) && ctx.Err() == nil; i = int(next.Add(1) - 1) {
				state, err := c.Load(ctx, server, names[i])
				results[i] <- result{state, err}
			}
		})
	}
	for i, name := range names {
		select {
		case r := <-results[i]:
			if err := each(name, r.state, r.err); err != nil {
				cancel()
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Gone drops the repositories that are not among names any more.
func (c *Cache) Gone(names []string) {
	keep := make(map[string]bool, len(names))
	for _, name := range names {
		keep[name] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for dir, e := range c.entries {
		if _, err := os.Lstat(dir); !keep[e.Name] && errors.Is(err, fs.ErrNotExist) {
			delete(c.entries, dir)
			c.changed = true
		}
	}
}
