package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Snapshots that are marked as bad are passed over by restores, and are the first that a policy gives up. So one wrong
// answer is not enough: bytes may be changed on the way, a proxy that is being restarted may say "not found", and
// a store some of whose disks are away may list less than it has.

// readAgain reads an object once more that was damaged, for the reason err. What it returns counts.
func (ver *verification) readAgain(ctx context.Context, o Object, err error) error {
	again := ver.readOne(ctx, o)
	if again == nil {
		ver.v.log().Warn("what was read was damaged, and was right when it was read again: look at memory, disk and network", "key", o.Key, "error", err)
	}
	if !errors.Is(again, errGone) {
		return again
	}
	for info, err := range ver.v.Store.List(ctx, o.Key, "", 1) {
		if err != nil {
			return fmt.Errorf("list %s: %w", o.Key, err)
		}
		if info.Key == o.Key {
			return fmt.Errorf("%s: the store lists it, and says that there is none when asked for it: nothing can be told: try again, and if it stays so, delete it there", o.Key)
		}
	}
	return again
}

// reallyMissing asks for what the store did not list.
func (ver *verification) reallyMissing(ctx context.Context, key string) error {
	r, err := ver.v.Store.Get(ctx, key, 0, -1)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", key, err)
	}
	r.Close()
	return fmt.Errorf("%s: the store has it, and did not list it: nothing can be told: try again", key)
}
