package shell

import (
	"fmt"
	"strings"
)

// fsck are git's settings for what [receive] demands of a push, "-c" and
// NAME=VALUE in turn: none when it is left to the git config. They hold for pushes of
// users, redirected ones among them, and for those of the master; a push that we
// pass on is looked at by the master that takes it.
func (s *Session) fsck() []string {
	want := s.Server.Receive.FsckObjects
	if want == nil {
		return nil
	}
	return []string{"-c", fmt.Sprintf("receive.fsckObjects=%t", *want)}
}

// settingsEnv says the same in the environment, for git that another program starts.
func settingsEnv(settings []string) []string {
	var env []string
	count := 0
	for _, setting := range settings {
		name, value, ok := strings.Cut(setting, "=")
		if !ok { // "-c"
			continue
		}
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", count, name), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", count, value))
		count++
	}
	if count == 0 {
		return nil
	}
	return append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", count))
}
