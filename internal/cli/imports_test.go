package cli

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed is the import order: what each package may import of this module.
// Downwards only: cmd → cli, worker → {hooks, shell, peer, status} → mirrorcfg →
// git → proc; hooks, shell and peer do not know each other; the queue knows no peers.
var allowed = map[string]string{
	"cmd/mirror-shell": "internal/cli",
	"cmd/mirrord":      "internal/cli internal/worker",
	"cmd/pre-receive":  "hooks",
	"cmd/post-receive": "hooks",

	"internal/worker":  "hooks internal/cli internal/durable internal/git internal/inbox internal/metrics internal/notify internal/proc internal/queue internal/refcache internal/refset internal/repos internal/rescue internal/status mirrorcfg peer peer/snapshot peer/store shell",
	"internal/cli":     "hooks internal/durable internal/git internal/gitolite internal/inbox internal/lazyregexp internal/proc internal/refset internal/repos internal/rescue internal/sendpack mirrorcfg shell",
	"internal/status":  "internal/git internal/proc internal/queue internal/repos internal/rescue mirrorcfg",
	"internal/metrics": "internal/queue",
	"internal/notify":  "internal/durable internal/inbox internal/proc internal/queue mirrorcfg",

	"contrib/manual":     "internal/cli internal/manual shell",
	"internal/manual":    "",
	"internal/packaging": "",

	"hooks":         "internal/git internal/inbox internal/proc internal/refset internal/rescue internal/sendpack mirrorcfg",
	"shell":         "internal/digest internal/durable internal/git internal/gitolite internal/lazyregexp internal/meta internal/proc internal/refset internal/repos internal/rescue internal/sendpack mirrorcfg",
	"peer":          "internal/digest internal/durable internal/git internal/meta internal/proc internal/refset internal/repos internal/rescue internal/sendpack mirrorcfg peer/snapshot peer/store",
	"peer/snapshot": "internal/digest internal/durable internal/git internal/lazyregexp internal/proc internal/refset internal/sendpack mirrorcfg peer/store",
	"peer/peertest": "internal/digest internal/git internal/proc mirrorcfg peer",

	"peer/store":           "internal/durable",
	"peer/store/storetest": "peer/store",

	"mirrorcfg":         "internal/git internal/lazyregexp",
	"internal/queue":    "internal/durable internal/inbox",
	"internal/git":      "internal/lazyregexp internal/proc",
	"internal/gitolite": "internal/git internal/lazyregexp internal/proc internal/refset mirrorcfg",
	"internal/inbox":    "internal/durable",
	"internal/digest":   "",
	"internal/durable":  "",
	"internal/refcache": "internal/digest internal/git internal/meta mirrorcfg",
	"internal/meta":     "internal/durable internal/git internal/lazyregexp internal/refset mirrorcfg",
	"internal/repos":    "internal/durable internal/git internal/lazyregexp internal/meta internal/proc mirrorcfg",
	"internal/refset":   "internal/durable",
	"internal/rescue":   "internal/git internal/lazyregexp internal/sendpack mirrorcfg",
	"internal/sendpack": "",
	"internal/proc":     "",
	"internal/testenv":  "peer/store/storetest",
	"internal/bench":    "",
	"internal/faults":   "internal/testenv",

	"internal/lazyregexp": "",
	"internal/strace":     "",
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v: %s", args, err, stderr.String())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func TestImportOrder(t *testing.T) {
	const module = "mirror-shell/"
	for _, line := range goList(t, "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "mirror-shell/...") {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		may, known := allowed[pkg]
		if !known {
			t.Errorf("package %s has no place in the import order: give it one", pkg)
		}
		for _, imported := range fields[1:] {
			dep, ours := strings.CutPrefix(imported, module)
			if ours && !slices.Contains(strings.Fields(may), dep) {
				t.Errorf("%s imports %s, which the import order does not allow", pkg, dep)
			}
		}
	}
}

// What stands in the user's way, or is started by sshd for every session, loads
// nothing heavy.
func TestLightPrograms(t *testing.T) {
	heavy := []string{"modernc.org/", "database/sql", "github.com/go-git/", "github.com/jackc/", "gocloud.dev/", "github.com/vbauerster/", "mirror-shell/internal/notify"}
	heavier := append([]string{"golang.org/x/crypto/", "github.com/alecthomas/kong", "net/http"}, heavy...)
	for program, not := range map[string][]string{"pre-receive": heavier, "post-receive": heavier, "mirror-shell": heavy} {
		for _, dep := range goList(t, "-deps", "mirror-shell/cmd/"+program) {
			if slices.ContainsFunc(not, func(prefix string) bool { return strings.HasPrefix(dep, prefix) }) {
				t.Errorf("%s loads %s", program, dep)
			}
		}
	}
}
