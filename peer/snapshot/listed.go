package snapshot

import "context"

// Judged is what was found out about the snapshots of a repository after they were made, by their Sums.
type Judged struct {
	Runs map[string][]string // the IDs of runs that found one unchanged, newest first
	Bad  map[string]bool     // those that are known not to be whole
}

// Judged reads, with one listing, what the checks of a repository say.
func (v *Vault) Judged(ctx context.Context, repository string) (Judged, error) {
	var all []checkName
	for c, err := range v.checks(ctx, repository) {
		if err != nil {
			return Judged{}, err
		}
		all = append(all, c)
	}
	return Judged{Runs: foundSame(all), Bad: knownBad(all)}, nil
}
