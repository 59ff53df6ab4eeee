package snapshot

import "context"

// Judged is what was found out about the snapshots of a repository after they were made, by their Sums.
type Judged struct {
	Runs map[string][]string // the IDs of runs that found one unchanged, newest first
	Bad  map[string]bool     // those that are known not to be whole
	// Forgotten are those of a repository that was forgotten, which are there only because the store retains them.
	Forgotten map[string]bool
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
	j := Judged{Runs: foundSame(all), Bad: map[string]bool{}, Forgotten: map[string]bool{}}
	for sum, kind := range verdicts(all) {
		j.Bad[sum], j.Forgotten[sum] = kind == checkBad, kind == checkForgotten
	}
	return j, nil
}
