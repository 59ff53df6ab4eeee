package store

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Room asks the file system; of other limits, such as quotas, it does not know.
func (d *directory) Room() (free, blobs, size uint64, err error) {
	if err := unix.Access(d.path, unix.W_OK); err != nil { // a disk with errors is mounted read-only by itself
		return 0, 0, 0, fmt.Errorf("nothing can be written to %s: %w", d.path, denied(err))
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(d.path, &disk); err != nil {
		return 0, 0, 0, fmt.Errorf("ask for the room in %s: %w", d.path, err)
	}
	block := uint64(disk.Bsize)
	if blobs = disk.Ffree; disk.Files == 0 { // file systems that make inodes as they need them
		blobs = math.MaxUint64
	}
	return disk.Bavail * block, blobs, disk.Blocks * block, nil
}
