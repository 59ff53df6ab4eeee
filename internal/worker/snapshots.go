package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/repos"
	"mirror-shell/peer/snapshot"
)

// listed is one snapshot as snapshots prints it.
type listed struct {
	Repository string    `json:"repository"`
	Time       time.Time `json:"time"`
	ID         string    `json:"id,omitempty"`  // of the run that made it
	IDs        []string  `json:"ids,omitempty"` // of all runs that it belongs to: those, too, that found it unchanged
	Bad        bool      `json:"bad,omitempty"` // known not to be whole
	Digest     string    `json:"digest"`
	Snapshot   string    `json:"snapshot"` // what check records and manifests call it
	Encrypted  bool      `json:"encrypted"`
	whereabouts
	Forgotten bool `json:"forgotten,omitempty"` // it is there only because the store retains it
}

// whereabouts say of a repository in the vault what became of it on this server. The zero value: it is there.
type whereabouts struct {
	Gone      bool       `json:"gone,omitempty"` // no repository of that name is on this server
	RenamedTo string     `json:"renamed_to,omitempty"`
	Deleted   *time.Time `json:"deleted,omitempty"` // and it is in the trash
}

func (w whereabouts) String() string {
	switch {
	case w.RenamedTo != "":
		return "is " + w.RenamedTo + " now"
	case w.Deleted != nil:
		return "deleted " + w.Deleted.Local().Format(time.DateOnly)
	case w.Gone:
		return "not on this server"
	}
	return ""
}

// whereabouts looks for repositories on this server: their last snapshots stay in the vault for ever, and are nobody's backup any more.
func (c *command) whereabouts(repositories []string) map[string]whereabouts {
	deleted := map[string]time.Time{}
	trash, err := repos.Trash(c.server)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it is a remark only
		fmt.Fprintf(c.Stderr, "mirror-shell: %s\n", proc.OneLine(err.Error(), 300))
	}
	for _, e := range trash {
		if e.At.After(deleted[e.Name]) {
			deleted[e.Name] = e.At
		}
	}
	all := map[string]whereabouts{}
	for _, name := range repositories {
		if _, _, err := c.server.Find(name); !errors.Is(err, fs.ErrNotExist) {
			continue // it is there, or nobody knows
		}
		w := whereabouts{Gone: true, RenamedTo: repos.NewName(c.server, name)}
		if at, ok := deleted[name]; ok && w.RenamedTo == "" {
			w.Deleted = &at
		}
		all[name] = w
	}
	return all
}

// snapshots lists what there is, newest first in each repository.
func (c *command) snapshots(ctx context.Context) error {
	_, vault, err := c.vault(ctx, c.Snapshots.From)
	if err != nil {
		return err
	}
	repositories, err := inVault(ctx, vault, c.Snapshots.Repositories)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.Stdout, 0, 0, 2, ' ', 0)
	lines := json.NewEncoder(c.Stdout)
	gone := c.whereabouts(repositories)
	note := ""
	if len(gone) > 0 {
		note = "\tNOTE"
	}
	if !c.Snapshots.JSON {
		fmt.Fprintln(table, "REPOSITORY\tTIME\tID\tREFS"+note)
	}
	for _, repository := range repositories {
		judged, err := vault.Judged(ctx, repository)
		if err != nil {
			return err
		}
		for name, err := range vault.Snapshots(ctx, repository) {
			if err != nil {
				return err
			}
			ids := judged.Runs[name.Sum]
			if name.ID != "" && !slices.Contains(ids, name.ID) {
				ids = append(ids, name.ID)
			}
			l := listed{name.Repository, name.Time, name.ID, ids, judged.Bad[name.Sum], name.Digest, name.Sum, name.Sealed, gone[repository], judged.Forgotten[name.Sum]}
			if c.Snapshots.JSON {
				err = lines.Encode(l)
			} else {
				err = l.print(table)
			}
			if err != nil {
				return err
			}
		}
	}
	return table.Flush()
}

// print writes a line of the table.
func (l listed) print(w io.Writer) error {
	refs, note := l.Digest[:12], l.whereabouts.String()
	switch {
	case l.Forgotten:
		refs += " (forgotten, retained by the store)"
	case l.Bad:
		refs += " (not whole)"
	}
	if note != "" {
		note = "\t" + note
	}
	_, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s%s\n", l.Repository, l.Time.Local().Format("2006-01-02 15:04:05.000 MST"), cmp.Or(strings.Join(l.IDs, " "), "-"), refs, note)
	return err
}

// verified is what verify found of one repository.
type verified struct {
	Repository   string          `json:"repository"`
	Snapshots    int             `json:"snapshots"`
	Objects      int             `json:"objects"`
	Bytes        int64           `json:"bytes"`        // that were read
	Unreferenced int             `json:"unreferenced"` // objects that no snapshot needs
	Findings     []string        `json:"findings"`
	Drill        *snapshot.Check `json:"drill,omitempty"`
}

// verify compares the manifests with the store, one repository after the other, and exits with 1 when anything is wrong.
func (c *command) verify(ctx context.Context) error {
	name, vault, err := c.vault(ctx, c.Verify.From)
	if err != nil {
		return err
	}
	repositories, err := c.toVerify(ctx, name, vault)
	if err != nil {
		return err
	}
	if len(repositories) == 0 {
		return c.nothingToVerify(name)
	}
	shown := newProgress(c.Stderr, c.Verify.Quiet || c.Verify.JSON)
	defer shown.Close()
	stage := shown.Stage("repositories verified", len(repositories))
	read := shown.Bytes("read")
	all := []verified{}
	bad, began := 0, time.Now()
	for _, repository := range repositories {
		v := c.verifyOne(ctx, name, vault, repository, read)
		if err := stopped(ctx); err != nil {
			return err
		}
		for _, finding := range v.Findings {
			fmt.Fprintf(shown, "mirror-shell: %s: %s\n", repository, proc.OneLine(finding, 1000))
		}
		bad += len(v.Findings)
		all = append(all, v)
		stage.Done(1)
	}
	shown.Close()
	return c.finishVerify(all, bad, time.Since(began))
}

// toVerify returns the repositories to be verified: those in the vault, and those that this server has backed up to it. One
// of which nothing is left there would be missed, and so would a vault that is empty.
func (c *command) toVerify(ctx context.Context, peerName string, vault *snapshot.Vault) ([]string, error) {
	all, err := vault.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	here, err := c.server.Repositories()
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an empty machine verifies too
		fmt.Fprintf(c.Stderr, "mirror-shell: what this server has backed up is not known for all of its repositories: %v\n", err)
	}
	for _, name := range here {
		if c.latestKnown(name, peerName) != "" {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return matching(slices.Compact(all), c.Verify.Repositories)
}

// nothingToVerify says that there is no backup at all. That is a failure: whoever has vaults verified believes to have some, and a
// mistake in a url looks just like this.
func (c *command) nothingToVerify(peerName string) error {
	if c.Verify.JSON {
		if err := json.NewEncoder(c.Stdout).Encode([]verified{}); err != nil {
			return err
		}
	}
	return fmt.Errorf("%[1]s is empty, and this server has never backed anything up to it: correct the url of [peer.%[1]s] in %[2]s if there should be backups, else mirror-shell backup makes the first",
		peerName, c.server.File)
}

// verifyOne verifies one repository. That it could not be done is a finding too.
func (c *command) verifyOne(ctx context.Context, peerName string, vault *snapshot.Vault, repository string, read *stage) verified {
	found, err := vault.Verify(ctx, repository, snapshot.VerifyOptions{
		ReadData: c.Verify.ReadData, Drill: c.Verify.Drill, Expect: c.latestKnown(repository, peerName), Progress: read.Done,
	})
	if !found.OK() {
		snapshot.LookAgain(c.backupMemory(repository, peerName))
	}
	v := verified{
		Repository: repository, Snapshots: found.Snapshots, Objects: found.Objects, Bytes: found.Bytes,
		Unreferenced: found.Unreferenced, Findings: []string{}, Drill: found.Drill,
	}
	for _, f := range found.Faults {
		v.Findings = append(v.Findings, faultText(f))
	}
	if found.Drill != nil && found.Drill.Error != "" {
		v.Findings = append(v.Findings, "the drill failed: "+found.Drill.Error)
	}
	if err != nil {
		v.Findings = append(v.Findings, err.Error())
	}
	return v
}

func (c *command) finishVerify(all []verified, bad int, took time.Duration) error {
	var snapshots, objects int
	var bytes int64
	for _, v := range all {
		snapshots, objects, bytes = snapshots+v.Snapshots, objects+v.Objects, bytes+v.Bytes
	}
	switch {
	case c.Verify.JSON:
		if err := json.NewEncoder(c.Stdout).Encode(all); err != nil {
			return err
		}
	case !c.Verify.Quiet || bad > 0:
		fmt.Fprintf(c.Stdout, "%d repositories, %d snapshots, %d objects, %s read: %d findings, in %.1f s\n",
			len(all), snapshots, objects, bytesText(bytes), bad, took.Seconds())
	}
	if bad > 0 {
		return cli.Exit(1)
	}
	return nil
}

// faultText is a fault for people: what is wrong with which key, and since when the snapshots that need it are.
func faultText(f snapshot.Fault) string {
	text := f.Key + ": " + f.Problem
	if n := len(f.Snapshots); n > 0 {
		text += fmt.Sprintf(" (needed by %d snapshots, the newest of %s)", n, f.Snapshots[0].Time.Local().Format(time.DateTime))
	}
	return text
}
