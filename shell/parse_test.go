package shell

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/mirrorcfg"
)

func TestParse(t *testing.T) {
	for command, want := range map[string]Request{
		"":                           {Verb: Info},
		"info":                       {Verb: Info},
		"info --json":                {Verb: Info, JSON: true},
		"info --json --back":         {Verb: Info, JSON: true, Back: true},
		"info --back":                {Verb: Info, Back: true},
		"git-receive-pack 'ip1'":     {Verb: ReceivePack, Repo: "ip1"},
		"git receive-pack 'ip1'":     {Verb: ReceivePack, Repo: "ip1"},
		"git-receive-pack 'ip1.git'": {Verb: ReceivePack, Repo: "ip1"},
		"git-receive-pack ip1":       {Verb: ReceivePack, Repo: "ip1"},
		"git-upload-pack '/ip1'":     {Verb: UploadPack, Repo: "ip1"}, // ssh://frodo/ip1
		"git-upload-pack '/a/b.git'": {Verb: UploadPack, Repo: "a/b"},
		// An absolute path is a name like any other: it stays below repo_base.
		"git-upload-pack '/etc/passwd'":           {Verb: UploadPack, Repo: "etc/passwd"},
		"git-upload-archive 'p/q'":                {Verb: UploadArchive, Repo: "p/q"},
		"git upload-archive 'p/q'":                {Verb: UploadArchive, Repo: "p/q"},
		"request-push ip1":                        {Verb: RequestPush, Repo: "ip1"},
		"mirror-meta 'ip1'":                       {Verb: MirrorMeta, Repo: "ip1"},
		"mirror-create 'ip1'":                     {Verb: MirrorCreate, Repo: "ip1"},
		"mirror-delete ip1.git":                   {Verb: MirrorDelete, Repo: "ip1"},
		"mirror-rename 'a/b' 'c.git'":             {Verb: MirrorRename, Repo: "a/b", To: "c"},
		"mirror-rename a b":                       {Verb: MirrorRename, Repo: "a", To: "b"},
		"USER=alice SOC=git-receive-pack 'ip1'":   {Verb: RedirectedPush, User: "alice", Repo: "ip1"},
		"USER=a.b@c SOC=git-receive-pack '/ip1'":  {Verb: RedirectedPush, User: "a.b@c", Repo: "ip1"},
		"git-upload-pack '@all+x_1.2-3'":          {Verb: UploadPack, Repo: "@all+x_1.2-3"},
		"git-upload-pack '" + longRepo(503) + "'": {Verb: UploadPack, Repo: longRepo(503)},
	} {
		got, err := Parse(command)
		if err != nil {
			t.Errorf("%q: %v", command, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", command, diff)
		}
	}
}

// longRepo is a name of n bytes with elements of at most 100.
func longRepo(n int) string {
	return strings.TrimSuffix(strings.Repeat(strings.Repeat("r", 100)+"/", 10)[:n], "/")
}

func TestParseBadInput(t *testing.T) {
	long := strings.Repeat("x", 2000)
	for command, want := range map[string]string{
		"git-upload-pack '" + long + "'":                "too long",
		long:                                            "too long",
		"git-upload-pack '" + long[:300] + "'":          "bad name",
		"git-upload-pack '" + longRepo(900) + "'":       "bad name",
		"git-upload-pack '\xff'":                        "UTF-8",
		"\xc3":                                          "UTF-8",
		"git-upload-pack 'ip\x001'":                     "control characters",
		"git-upload-pack 'ip1'\n":                       "control characters",
		"info\nid":                                      "control characters",
		"info\r":                                        "control characters",
		"git-upload-pack\t'ip1'":                        "control characters",
		"git-upload-pack 'ip\u00851'":                   "control characters", // C1
		"git-upload-pack 'ip\u202e1'":                   "bad name",           // turns text around
		"git-upload-pack 'ip\u20281'":                   "bad name",           // line separator
		"git-upload-pack 'ipé'":                         "bad name",
		"git-upload-pack --timeout=1 'x'":               "options are not allowed",
		"git-upload-pack --strict":                      "options are not allowed",
		"git-upload-pack '--upload-pack=id'":            "options are not allowed",
		"git-upload-pack -- 'x'":                        "options are not allowed",
		"git-upload-pack '/-x'":                         "bad name",
		"git-receive-pack 'x' --stateless-rpc":          "unbalanced quote",
		"info; id":                                      "unknown command",
		"info && id":                                    "info does not take",
		"info | id":                                     "info does not take",
		"info --json --yes":                             "info does not take",
		"info ip1":                                      "info does not take",
		"info ":                                         "info does not take",
		"info  --json":                                  "info does not take",
		"INFO":                                          "unknown command",
		"git-upload-pack 'a' 'b'":                       "bad name",
		"git-upload-pack 'a' && id":                     "unbalanced quote",
		"git-upload-pack 'a'; id":                       "unbalanced quote",
		"git-upload-pack a;id":                          "bad name",
		"git-upload-pack a b":                           "bad name",
		"git-upload-pack $(id)":                         "bad name",
		"git-upload-pack '`id`'":                        "bad name",
		"git-upload-pack 'a'b'":                         "bad name",
		`git-upload-pack 'a'\''b'`:                      "bad name",
		"git-upload-pack 'a":                            "unbalanced quote",
		"git-upload-pack '":                             "unbalanced quote",
		"git-upload-pack a'":                            "bad name",
		"git-upload-pack ''":                            "bad name",
		`git-upload-pack "a"`:                           "bad name",
		"git-upload-pack '' ''":                         "bad name",
		"git-upload-pack '/'":                           "bad name",
		"git-upload-pack '//ip1'":                       "bad name",
		"git-upload-pack '..'":                          "bad name",
		"git-upload-pack '../x'":                        "bad name",
		"git-upload-pack 'a/../../x'":                   "bad name",
		"git-upload-pack 'a/..'":                        "bad name",
		"git-upload-pack 'a//b'":                        "bad name",
		"git-upload-pack 'a/./b'":                       "bad name",
		"git-upload-pack 'a/'":                          "bad name",
		"git-upload-pack '.git'":                        "bad name",
		"git-upload-pack 'a.git.git'":                   "bad name",
		"git-upload-pack 'a.git/b'":                     "bad name",
		"git-upload-pack 'a.git/config'":                "bad name",
		"git-upload-pack '~alice/x'":                    "bad name",
		"git-upload-pack '/~/x'":                        "bad name",
		"git-upload-pack '~'":                           "bad name",
		`git-upload-pack 'a\b'`:                         "bad name",
		"git-upload-pack  'x'":                          "bad name",
		"git-upload-pack 'x' ":                          "unbalanced quote",
		" git-upload-pack 'x'":                          "unknown command",
		" ":                                             "unknown command",
		"git-upload-pack":                               "no repository named",
		"git-upload-pack ":                              "no repository named",
		"git upload-pack":                               "no repository named",
		"git":                                           "unknown command",
		"git  upload-pack 'x'":                          "unknown command",
		"git -c x=y upload-pack 'x'":                    "unknown command",
		"git git-upload-pack 'x'":                       "unknown command",
		"git info":                                      "unknown command",
		"sh":                                            "unknown command",
		"/usr/bin/git-upload-pack 'x'":                  "unknown command",
		"git-shell 'x'":                                 "unknown command",
		"mirror-digest ip1":                             "takes no arguments",
		"git-lfs-authenticate 'x' download":             "unknown command",
		"USER=":                                         "bad name",
		"USER= SOC=git-receive-pack 'x'":                "bad name",
		"USER=a/b SOC=git-receive-pack 'x'":             "bad name",
		"USER=-x SOC=git-receive-pack 'x'":              "bad name",
		"USER=.. SOC=git-receive-pack 'x'":              "bad name",
		"USER=bob":                                      "only git-receive-pack",
		"USER=bob git-receive-pack 'x'":                 "only git-receive-pack",
		"USER=bob SOC=git-upload-pack 'x'":              "only git-receive-pack",
		"USER=bob SOC=git-receive-pack":                 "only git-receive-pack",
		"USER=bob SOC=git-receive-pack ":                "no repository named",
		"USER=bob  SOC=git-receive-pack 'x'":            "only git-receive-pack",
		"USER=bob SOC=git-receive-pack 'x' 'y'":         "bad name",
		"USER=bob USER=eve SOC=git-receive-pack 'x'":    "only git-receive-pack",
		"user=bob SOC=git-receive-pack 'x'":             "unknown command",
		"SOC=git-receive-pack 'x'":                      "unknown command",
		"request-push":                                  "no repository named",
		"request-push ip1 sam":                          "bad name",
		"request-push -fg ip1":                          "options are not allowed",
		"mirror-meta 'ip1' {}":                          "unbalanced quote",
		"mirror-create 'a' 'b'":                         "bad name",
		"mirror-rename 'a'":                             "no repository named",
		"mirror-rename 'a' ":                            "no repository named",
		"mirror-rename 'a'  'b'":                        "bad name",
		"mirror-rename 'a' 'b' 'c'":                     "bad name",
		"mirror-rename 'a b' 'c'":                       "unbalanced quote",
		"mirror-rename 'a' '../b'":                      "bad name",
		"mirror-rename '../a' 'b'":                      "bad name",
		"mirror-rename 'a' --force":                     "options are not allowed",
		"mirror-rename '.mirror-shell/trash/x' 'b'":     "bad name",
		"USER=" + long[:200] + " SOC=git-receive-pack ": "bad name",
	} {
		got, err := Parse(command)
		if err == nil {
			t.Errorf("%.100q was taken for %+v", command, got)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%.100q: %v, want …%s…", command, err, want)
		}
		if got.Repo != "" {
			t.Errorf("%.100q: refused, but names repository %q", command, got.Repo)
		}
		if len(err.Error()) > 600 {
			t.Errorf("%.100q: message of %d bytes", command, len(err.Error()))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "info", "info --json --back", "git-receive-pack 'ip1'", "git upload-pack '/a/b.git'", "git-upload-archive x",
		"USER=alice SOC=git-receive-pack 'ip1'", "request-push ip1", "mirror-meta 'ip1'", "mirror-rename 'a' 'b.git'", "mirror-delete a", "git-upload-pack --timeout=1 'x'",
		"info; id", "git-upload-pack 'a' 'b'", "git-upload-pack 'a'\\''b'", "USER=-x SOC=git-receive-pack 'x'", "\xff", "a\nb",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, command string) {
		req, err := Parse(command)
		if err != nil {
			if req.Repo != "" {
				t.Fatalf("%q: refused, but names repository %q", command, req.Repo)
			}
			return
		}
		again, err := Parse(req.Command())
		if err != nil || again != req {
			t.Fatalf("%q → %+v → %q → %+v, %v", command, req, req.Command(), again, err)
		}
		if len(command) > maxCommand || strings.ContainsFunc(command, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Fatalf("%q was let through", command)
		}
		if req.Verb == Info {
			return
		}
		// What comes out needs no quoting in a shell, in a path or in a log.
		if clean, err := mirrorcfg.CleanRepo(req.Repo); err != nil || clean != req.Repo {
			t.Fatalf("%q: repository %q: %q, %v", command, req.Repo, clean, err)
		}
		if (req.Verb == RedirectedPush) != (req.User != "") || req.JSON || req.Back {
			t.Fatalf("%q: %+v", command, req)
		}
		if (req.Verb == MirrorRename) != (req.To != "") {
			t.Fatalf("%q: %+v", command, req)
		}
		if strings.ContainsAny(req.Repo+req.To+req.User, "'\"\\$`;&|<>*?~ ") {
			t.Fatalf("%q: %+v", command, req)
		}
	})
}
