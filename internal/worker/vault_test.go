package worker

import (
	"strings"
	"testing"
	"time"

	"mirror-shell/mirrorcfg"
)

func TestExamineLock(t *testing.T) {
	const hours = mirrorcfg.Duration(720 * time.Hour)
	for name, c := range map[string]struct {
		backup mirrorcfg.Backup
		told   bool
	}{
		"no lock":                  {mirrorcfg.Backup{}, false},
		"a lock and no policy":     {mirrorcfg.Backup{Lock: hours}, true},
		"a lock and a policy":      {mirrorcfg.Backup{Lock: hours, KeepDaily: 30}, false},
		"a lock and all of a time": {mirrorcfg.Backup{Lock: hours, KeepWithin: hours}, false},
	} {
		server := &mirrorcfg.Server{File: "config.toml", Peers: map[string]mirrorcfg.PeerConfig{"vault": {Kind: kindBackup, Backup: c.backup}}}
		found := (&command{server: server}).examineLock("vault")
		if len(found) > 0 != c.told {
			t.Errorf("%s: %+v", name, found)
		}
		for _, f := range found {
			if f.Level != warn || !strings.Contains(f.Detail, `lock = "720h0m0s" without any keep_…`) || !strings.Contains(f.Do, "[peer.vault] in config.toml") {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}
