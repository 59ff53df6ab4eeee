package snapshot

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Repositories returns the names of all repositories that have snapshots, sorted.
func (v *Vault) Repositories(ctx context.Context) ([]string, error) {
	var all []string
	last, after := "", ""
	for {
		// One listing per repository: a vault has few repositories with very many snapshots.
		next, found, err := v.nextRepository(ctx, after)
		if err != nil || !found {
			slices.Sort(all) // "a/b.git/" sorts before "a.git/" in keys
			return slices.Compact(all), err
		}
		if next != last {
			all, last = append(all, next), next
		}
		after = snapshotsOf(next) + "~" // greater than every name below it
	}
}

// nextRepository returns the repository of the first snapshot behind a key.
func (v *Vault) nextRepository(ctx context.Context, after string) (repository string, found bool, err error) {
	for name, err := range v.names(ctx, "snapshots/", after, 0) {
		return name.Repository, err == nil, err
	}
	return "", false, nil
}

// Choice is a snapshot that was chosen, and what has to be said about it.
type Choice struct {
	Name
	Notes []string
	// Forgotten: nobody was to see it any more, and it is there only because the store retains it.
	Forgotten bool
}

// ByID returns the newest snapshot that belongs to the run with that ID: it was made in it, or found to be
// unchanged. ErrNoSnapshot when the run has none.
func (v *Vault) ByID(ctx context.Context, repository, id string) (Name, error) {
	if err := CheckID(id); err != nil {
		return Name{}, err
	}
	same := map[string]bool{} // sums of the snapshots that were found unchanged
	for c, err := range v.checks(ctx, repository) {
		if err != nil {
			return Name{}, err
		}
		if c.Kind == checkSame && c.ID == id {
			same[c.Sum] = true
		}
	}
	for name, err := range v.Snapshots(ctx, repository) {
		if err != nil {
			return Name{}, err
		}
		if name.ID == id || same[name.Sum] {
			return name, nil
		}
	}
	return Name{}, fmt.Errorf("%s: %w: none belongs to the run %q", repository, ErrNoSnapshot, id)
}

// Choose returns the snapshot to restore: that of the run with an ID, when id is given, else the newest that is not
// newer than at, else (at is zero) the newest. Snapshots that are known to be bad, or forgotten, are passed over,
// and said, but not when an ID asks for exactly that one, nor the newest of them when all are so: restoring
// it tells what is wrong.
func (v *Vault) Choose(ctx context.Context, repository string, at time.Time, id string) (Choice, error) {
	judged, err := v.verdicts(ctx, repository)
	if err != nil {
		return Choice{}, err
	}
	if id != "" {
		name, err := v.ByID(ctx, repository, id)
		c := Choice{Name: name, Forgotten: judged[name.Sum] == checkForgotten}
		if text := blemish(judged[name.Sum]); err == nil && text != "" {
			c.Notes = append(c.Notes, describe(name)+" "+text)
		}
		return c, err
	}
	after := ""
	if !at.IsZero() {
		after = snapshotsOf(repository) + countdown(at.Truncate(time.Millisecond))
	}
	var c Choice
	for name, err := range v.names(ctx, snapshotsOf(repository), after, 0) {
		if err != nil {
			return Choice{}, err
		}
		text := blemish(judged[name.Sum])
		if text == "" {
			c.Name, c.Notes = name, fewNotes(c.Notes)
			return c, nil
		}
		if c.Notes = append(c.Notes, describe(name)+" "+text+", and was passed over"); len(c.Notes) == 1 {
			c.Name = name
		}
	}
	if len(c.Notes) > 0 {
		note := describe(c.Name) + " " + blemish(judged[c.Sum]) + ", and none before it is better"
		return Choice{Name: c.Name, Notes: []string{note}, Forgotten: judged[c.Sum] == checkForgotten}, nil
	}
	return c, fmt.Errorf("%s: %w", repository, ErrNoSnapshot)
}

// fewNotes keeps the first of many: old data that is damaged spoils thousands of snapshots.
func fewNotes(notes []string) []string {
	const most = 3
	if len(notes) <= most {
		return notes
	}
	return append(notes[:most-1:most-1], fmt.Sprintf("so were %d more before it", len(notes)-most+1))
}

func describe(n Name) string {
	return "the snapshot of " + n.Time.UTC().Format(time.RFC3339)
}

// verdicts returns the kinds of the newest judgements of snapshots by their Sums: "bad", "good", or "forgotten", which nothing changes any more. Checks are
// sorted newest first.
func verdicts(checks []checkName) map[string]string {
	judged := map[string]string{}
	for _, c := range checks {
		_, known := judged[c.Sum]
		if c.Kind == checkForgotten || !known && (c.Kind == checkBad || c.Kind == checkGood) {
			judged[c.Sum] = c.Kind
		}
	}
	return judged
}

// verdicts returns those of a repository's snapshots.
func (v *Vault) verdicts(ctx context.Context, repository string) (map[string]string, error) {
	var checks []checkName
	for c, err := range v.checks(ctx, repository) {
		if err != nil {
			return nil, err
		}
		if c.Kind != checkSame { // of which there are many
			checks = append(checks, c)
		}
	}
	return verdicts(checks), nil
}

// blemish is what has to be said about a snapshot of that verdict, "" for nothing.
func blemish(verdict string) string {
	switch verdict {
	case checkBad:
		return "is known to be not whole"
	case checkForgotten:
		return "is forgotten, and there only because the store retains it"
	}
	return ""
}
