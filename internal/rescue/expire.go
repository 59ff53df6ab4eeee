package rescue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-shell/mirrorcfg"
)

// Expired is a rescued ref that was dropped because of its age.
type Expired struct {
	Repository string `json:"repository"`
	Entry
}

// firstRescue is older than any rescue can be. A server whose clock started in
// 1970 must not lose what it rescued then as soon as its clock is right.
var firstRescue = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Expire drops, in all repositories, the rescued refs that are older than
// guard.keep_rescued; where that is 0, which is the default, it does nothing. What was
// dropped is to be logged with its OID, so that it can be had back until gc. A
// repository that fails stops no other; its error comes with the rest.
func Expire(ctx context.Context, server *mirrorcfg.Server, now time.Time) ([]Expired, error) {
	keep := time.Duration(server.Guard.KeepRescued)
	if keep <= 0 {
		return nil, nil
	}
	names, err := server.Repositories()
	errs := []error{err}
	var dropped []Expired
	for _, name := range names {
		if ctx.Err() != nil {
			return dropped, errors.Join(append(errs, ctx.Err())...)
		}
		entries, err := expireOne(ctx, server, name, now.Add(-keep))
		for _, e := range entries {
			dropped = append(dropped, Expired{name, e})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rescued refs of %s: %w", name, err))
		}
	}
	return dropped, errors.Join(errs...)
}

func expireOne(ctx context.Context, server *mirrorcfg.Server, name string, limit time.Time) (dropped []Entry, err error) {
	_, repo, err := server.Find(name)
	if err != nil {
		return nil, err
	}
	entries, err := List(ctx, repo)
	errs := []error{err}
	for _, e := range entries {
		if !e.Time.Before(limit) || e.Time.Before(firstRescue) {
			continue
		}
		if err := repo.DeleteRef(ctx, Prefix+"/"+e.Name, e.OID); err != nil {
			errs = append(errs, err)
			continue
		}
		dropped = append(dropped, e)
	}
	return dropped, errors.Join(errs...)
}
