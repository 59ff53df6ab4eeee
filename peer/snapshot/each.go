package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// maxErrors is how many errors of the same work are told.
const maxErrors = 20

// each calls do for the items, n at a time. Damage to one does not keep it from the others, so
// that all that is damaged is told at once; any other error ends the work.
func each[T any](ctx context.Context, n int, items []T, do func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan T)
	var mu sync.Mutex
	var damaged []error
	var wg sync.WaitGroup
	for range min(n, len(items)) {
		wg.Go(func() {
			for item := range todo {
				err := do(ctx, item)
				if errors.Is(err, ErrDamaged) {
					mu.Lock()
					damaged = append(damaged, err)
					mu.Unlock()
				} else if err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, item := range items {
		select {
		case todo <- item:
		case <-ctx.Done():
			break feed
		}
	}
	close(todo)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		damaged = append([]error{err}, damaged...)
	}
	if more := len(damaged) - maxErrors; more > 0 {
		damaged = append(damaged[:maxErrors], fmt.Errorf("and %d more", more))
	}
	return errors.Join(damaged...)
}

// all is each for tasks.
func all(ctx context.Context, n int, tasks []func(context.Context) error) error {
	return each(ctx, n, tasks, func(ctx context.Context, task func(context.Context) error) error { return task(ctx) })
}
