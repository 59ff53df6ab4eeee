// Command deb packs the Debian package of mirror-shell from what build has put into a
// staging directory. It uses nfpm as a library, and is a module of its own, so that
// mirror-shell itself has none of its dependencies.
//
//	deb -version VERSION -arch GOARCH -stage DIRECTORY -out DIRECTORY
//
// It runs in the root of the source tree, prints the package's path, and takes the time
// of everything in the package from SOURCE_DATE_EPOCH.
package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
)

func main() {
	var b build
	flag.StringVar(&b.described, "version", "", "what git describe --tags --always --dirty says")
	flag.StringVar(&b.arch, "arch", "", "Go's name of the architecture")
	flag.StringVar(&b.stage, "stage", "", "directory with programs/ and manual/")
	flag.StringVar(&b.out, "out", "", "where the package goes")
	flag.Parse()
	file, err := b.run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "deb: %v\n", err)
		os.Exit(1)
	}
	fmt.Println(file)
}

// build is one package to be built.
type build struct {
	described, arch, stage, out string
}

func (b build) run() (string, error) {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return "", fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	when := time.Unix(seconds, 0).UTC()
	version, maintainer := debianVersion(b.described, when), maintainer()
	if err := b.fill(version, maintainer, when); err != nil {
		return "", err
	}
	config, err := nfpm.ParseFileWithEnvMapping("contrib/packaging/nfpm.yaml", func(name string) string {
		if name == "STAGE" {
			return b.stage
		}
		return ""
	})
	if err != nil {
		return "", err
	}
	info, err := config.Get("deb")
	if err != nil {
		return "", err
	}
	info.Version, info.VersionSchema, info.Arch, info.Maintainer, info.MTime = version, "none", b.arch, maintainer, when
	info.Prerelease = "" // nfpm guesses one while the version is not set
	info.Deb.Compression = "gzip"
	for _, content := range info.Contents {
		if content.FileInfo == nil {
			content.FileInfo = &files.ContentFileInfo{}
		}
		content.FileInfo.MTime = when
		if content.Type == files.TypeSymlink {
			content.FileInfo.Mode = 0o777
		}
	}
	return b.pack(nfpm.WithDefaults(info))
}

// pack writes the package, under its name only when it is whole.
func (b build) pack(info *nfpm.Info) (string, error) {
	if err := nfpm.PrepareForPackager(info, "deb"); err != nil {
		return "", err
	}
	packager, err := nfpm.Get("deb")
	if err != nil {
		return "", err
	}
	var data bytes.Buffer
	if err := packager.Package(info, &data); err != nil {
		return "", err
	}
	file := filepath.Join(b.out, fmt.Sprintf("%s_%s_%s.deb", info.Name, info.Version, info.Arch))
	if err := os.WriteFile(file+".new", data.Bytes(), 0o644); err != nil {
		return "", err
	}
	return file, os.Rename(file+".new", file)
}

// trigger is for the LOCAL_CODE of a gitolite 3. It finds mirror-shell in /usr/bin by itself.
const trigger = "gitolite/lib/Gitolite/Triggers/MirrorShell.pm"

// fill puts what a package has beside programs into the staging directory.
func (b build) fill(version, maintainer string, when time.Time) error {
	here := "contrib/packaging/"
	changelog := fmt.Sprintf("mirror-shell (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n -- %s  %s\n", version, maintainer, when.Format(time.RFC1123Z))
	errs := []error{b.put("doc/changelog.gz", []byte(changelog))}
	for from, to := range map[string]string{
		here + "README.Debian": "doc/README.Debian", here + "copyright": "doc/copyright",
		"README.md": "doc/README.md.gz", "SECURITY.md": "doc/SECURITY.md", "CHANGELOG.md": "doc/CHANGELOG.md.gz",
		"contrib/cron/mirror-shell": "examples/mirror-shell.cron", "contrib/logrotate/mirror-shell": "examples/mirror-shell.logrotate",
		"contrib/gitolite/README.md": "gitolite/README.md", "contrib/" + trigger: trigger,
		filepath.Join(b.stage, "manual/mirror-shell.1"): "manual/mirror-shell.1.gz", filepath.Join(b.stage, "manual/mirror-shell.toml.5"): "manual/mirror-shell.toml.5.gz",
	} {
		errs = append(errs, b.copy(from, to))
	}
	units, err := filepath.Glob("contrib/systemd/*")
	if err == nil && len(units) == 0 {
		err = errors.New("contrib/systemd is empty")
	}
	errs = append(errs, err)
	for _, unit := range units {
		errs = append(errs, b.copy(unit, "systemd/"+filepath.Base(unit)))
	}
	return errors.Join(errs...)
}

// copy copies a file of the source tree. What speaks of programs says where the
// package has them.
func (b build) copy(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(to, "doc/") && !strings.HasPrefix(to, "gitolite/") {
		data = bytes.ReplaceAll(data, []byte("/usr/local/bin/mirror-shell"), []byte("/usr/bin/mirror-shell"))
	}
	return b.put(to, data)
}

// put writes a file below the staging directory; one that ends in .gz compressed,
// and without the time, which would differ each time.
func (b build) put(to string, data []byte) error {
	if strings.HasSuffix(to, ".gz") {
		var packed bytes.Buffer
		w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		data = packed.Bytes()
	}
	file := filepath.Join(b.stage, to)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

// maintainer is whoever builds the package, as git knows them.
func maintainer() string {
	name, nameErr := exec.Command("git", "config", "user.name").Output()
	email, emailErr := exec.Command("git", "config", "user.email").Output()
	if nameErr != nil || emailErr != nil {
		return "nobody <nobody@localhost>"
	}
	return fmt.Sprintf("%s <%s>", strings.TrimSpace(string(name)), strings.TrimSpace(string(email)))
}
