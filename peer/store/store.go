// Package store keeps blobs under names: what backups are written to and read from.
//
// A blob is written once and never changed. There is no way to overwrite one, no
// rename and no directory, because object storage has none of them that can be
// relied on, and because write-once storage (object lock) refuses them. What a backup needs is
// less than that: a name that is either absent or whole.
//
// # Keys
//
// A key is 1 to 900 bytes of printable ASCII in elements separated by "/"; no element is
// empty, "." or "..", begins with a dot or has more than 250 bytes (CheckKey). Some
// stores keep keys as files: no key may be the beginning of another key up to a "/". Who
// chooses keys sees to that; a store may refuse.
//
// # Kinds
//
// Open knows a directory of this machine (file:///srv/backup, or the bare path) and S3
// (s3://bucket/prefix?region=…&endpoint=…), with object lock. The suite in
// package storetest says what each has to do.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"
)

// Errors of a Store wrap these where the caller can do better than try again later.
// A blob that is not there is fs.ErrNotExist.
var (
	// ErrExists: Put found the key taken. It also is fs.ErrExist.
	ErrExists = fmt.Errorf("exists already in the store: %w", fs.ErrExist)
	// ErrLocked: a blob cannot be deleted yet, because the store retains it.
	ErrLocked = errors.New("is retained by the store")
	// ErrDenied: the store does not let us in, or not do this. It concerns every blob.
	ErrDenied = errors.New("the store refuses access")
	// ErrUnreachable: nobody answers, after all attempts.
	ErrUnreachable = errors.New("the store cannot be reached")
)

// Blob is what Put writes.
type Blob struct {
	// Size in bytes. A reader that ends earlier or later fails the Put.
	Size int64
	// Open returns the content from its beginning. It is called again when an
	// attempt is repeated.
	Open func() (io.ReadCloser, error)
	// Retain is until when the store must refuse to delete the blob; zero: not at
	// all. A store that has no such lock ignores it.
	Retain time.Time
}

// Info describes a stored blob.
type Info struct {
	Key  string
	Size int64     // bytes
	Time time.Time // when it was published, by the store's clock
}

// Store is one place. Its methods may be called by any number of goroutines, and the
// same place by any number of processes on any number of machines.
type Store interface {
	// Put publishes a blob under a new key. When it returns nil the blob is durable and
	// every later Get and List, anywhere, sees it whole. A taken key is ErrExists, and what is there stays
	// as it is. After any other error the key is absent or has the whole blob (the
	// answer was lost), never anything else.
	Put(ctx context.Context, key string, b Blob) error
	// Get reads length bytes from offset on, or all the rest when length is negative. A read that
	// breaks off is continued where it was; one that cannot be is an error of Read, never an early EOF.
	// Nothing checks the bytes: the caller knows their SHA-256.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)
	// List yields the blobs whose keys begin with prefix and are greater than after (""
	// for all), in ascending order of bytes. It asks for at most limit of them (0: all), a
	// thousand per request. A failed listing yields its error last; what came before is then not all.
	List(ctx context.Context, prefix, after string, limit int) iter.Seq2[Info, error]
	// Delete removes a blob for good. One that is not there is no error; a retained
	// one is ErrLocked.
	Delete(ctx context.Context, key string) error
}

// Retainer is a Store whose blobs can be retained.
type Retainer interface {
	// Retain has the store refuse to delete a blob until then at the least. It
	// never shortens.
	Retain(ctx context.Context, key string, until time.Time) error
	// Retained returns until when a blob is retained; zero: it is not.
	Retained(ctx context.Context, key string) (time.Time, error)
}

// Deferrer is a Store that can publish many blobs for less than each by itself: it has to
// do something for all of them that is the same.
type Deferrer interface {
	// PutDeferred is Put, also in what its errors say, but that a power cut before Settle may
	// take the blob away again. It is there whole or not at all, as ever.
	PutDeferred(ctx context.Context, key string, b Blob) error
	// Settle makes these keys durable. An error that wraps fs.ErrNotExist says that there is nothing
	// any more where one of them was.
	Settle(ctx context.Context, keys []string) error
}

// Roomer is a Store that has so much room and no more.
type Roomer interface {
	// Room returns how many bytes, and how many blobs, can still be put there, and the size of it all in bytes. A
	// number of blobs that is not bounded is the largest one. ErrDenied: nothing can be put there at all.
	Room() (free, blobs, size uint64, err error)
}

// Counter is a Store that counts what it asks for and moves, for reports.
type Counter interface {
	// Counts returns the totals since the store was opened.
	Counts() Counts
}

// Counts are requests (each attempt is one) and bytes of blobs.
type Counts struct{ Requests, Sent, Received int64 }

// CheckKey refuses what the package comment does not allow.
func CheckKey(key string) error {
	if key == "" || len(key) > 900 {
		return fmt.Errorf("key of %d bytes: 1 to 900 are allowed", len(key))
	}
	for element := range strings.SplitSeq(key, "/") {
		if element == "" || element[0] == '.' || len(element) > 250 {
			return fmt.Errorf("key %q: an element is empty, too long or begins with a dot", key)
		}
	}
	if i := strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }); i >= 0 {
		return fmt.Errorf("key %q: byte %d is not allowed", key, i)
	}
	return nil
}
