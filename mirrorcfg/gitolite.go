package mirrorcfg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Gitolite says that gitolite 3 manages the repositories of this server: it decides
// what users may do, and its hooks run beside ours.
type Gitolite struct {
	// Programs is the directory of gitolite-shell, which gitolite calls GL_BINDIR;
	// "": there is no gitolite here.
	Programs string `toml:"programs"`
}

// checkGitolite also makes gitolite-shell the program that users' sessions are handed
// to, unless another one is named: git without it would know none of gitolite's rules.
func (s *Server) checkGitolite() error {
	g := &s.Gitolite
	if g.Programs == "" {
		return nil
	}
	dir, err := expandHome(g.Programs)
	if err != nil {
		return fmt.Errorf("gitolite.programs: %w", err)
	}
	g.Programs = dir
	if len(s.Users.Exec) == 0 {
		s.Users.Exec = []string{filepath.Join(dir, "gitolite-shell")}
	}
	return nil
}

// setGitoliteDefaults is for what a repository needs that a master has created here: that
// gitolite gives it its part of gitolite.conf.
func (s *Server) setGitoliteDefaults() {
	if s.Gitolite.Programs != "" && len(s.Accept.Created) == 0 {
		s.Accept.Created = []string{"gitolite", "trigger", "POST_CREATE"}
	}
}

// Environ is what gitolite's hooks need in a push that gitolite-shell did not start: the
// mirror push of a master. What users may do does not bind it. The variable that says
// so is nobody's to set but ours: sessions drop what a client sends.
func (g Gitolite) Environ() []string {
	if g.Programs == "" {
		return nil
	}
	return []string{
		"GL_BINDIR=" + g.Programs, "GL_LIBDIR=" + filepath.Join(g.Programs, "lib"),
		"GL_BYPASS_ACCESS_CHECKS=1",
	}
}

// IsUpdateHook reports whether a file, whose symlinks are resolved, is the update hook that
// gitolite gives to every repository. In a mirror push it does nothing.
func (g Gitolite) IsUpdateHook(file string) bool {
	home, err := os.UserHomeDir()
	if g.Programs == "" || err != nil {
		return false
	}
	hook, err := filepath.EvalSymlinks(filepath.Join(home, ".gitolite/hooks/common/update"))
	return err == nil && file == hook
}

// Check reports what is not in its place on this machine.
func (g Gitolite) Check() error {
	if g.Programs == "" {
		return errors.New("gitolite.programs is not set")
	}
	for _, name := range []string{"gitolite-shell", "lib/Gitolite/Rc.pm"} {
		if _, err := os.Stat(filepath.Join(g.Programs, name)); err != nil {
			return fmt.Errorf("gitolite.programs: %w", err)
		}
	}
	return nil
}
