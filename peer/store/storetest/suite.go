// Package storetest has one suite that every kind of store passes, and what tests of
// stores need:
//
//   - [Run] is the suite. What a Store promises is tested there, once for all kinds.
//   - [S3] is a real S3 server (versitygw) on loopback, one for the tests of a package, with
//     versions and object lock. Its program is built when it is missing.
//   - [Faulty] is a proxy before it, that cuts connections, loses answers, hangs and lies.
//   - [Wrap] puts hooks around any Store, for tests that want a certain operation to fail.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/peer/store"
)

// Run runs the suite. open returns a new, empty store.
func Run(t *testing.T, open func(t testing.TB) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"put and get":        putGet,
		"exists":             exists,
		"sizes that lie":     sizesThatLie,
		"large blob":         large,
		"ranges":             ranges,
		"list":               list,
		"order of lists":     listOrder,
		"many blobs":         manyBlobs,
		"one of many":        oneOfMany,
		"cancelled":          cancelled,
		"content that fails": contentFails,
		"delete":             deletes,
		"refused keys":       refusedKeys,
		"prefix of a key":    prefixOfKey,
		"retention":          retention,
		"counts":             counts,
		"deferred":           deferred,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// Bytes is a Blob with this content.
func Bytes(content []byte) store.Blob {
	return store.Blob{Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}}
}

// Read gets a whole blob.
func Read(ctx context.Context, s store.Store, key string) ([]byte, error) {
	return ReadRange(ctx, s, key, 0, -1)
}

// ReadRange gets a part of a blob.
func ReadRange(ctx context.Context, s store.Store, key string, offset, length int64) ([]byte, error) {
	r, err := s.Get(ctx, key, offset, length)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// Keys lists a store's keys.
func Keys(ctx context.Context, s store.Store, prefix, after string, limit int) (keys []string, err error) {
	for info, err := range s.List(ctx, prefix, after, limit) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

// Random is content that does not repeat, the same for the same seed.
func Random(seed uint64, size int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, size)
	rand.NewChaCha8(key).Read(p)
	return p
}

func mustPut(t testing.TB, s store.Store, key string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, Bytes(content)); err != nil {
		t.Fatal(err)
	}
}

func mustHave(t testing.TB, s store.Store, key string, want []byte) {
	t.Helper()
	got, err := Read(t.Context(), s, key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes of other content than the %d that were put", key, len(got), len(want))
	}
}

func mustLack(t testing.TB, s store.Store, key string) {
	t.Helper()
	if _, err := Read(t.Context(), s, key); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("get %s: %v, want that it is not there", key, err)
	}
	if keys, err := Keys(t.Context(), s, "", "", 0); err != nil || slices.Contains(keys, key) {
		t.Fatalf("a list has %q, %v", keys, err)
	}
}

func putGet(t *testing.T, s store.Store) {
	for key, content := range map[string][]byte{
		"a": []byte("content"), "b/empty": {}, "b/c/d.e": {0}, "r/__0x2f__/x": []byte("no slash"), "r/a../b": []byte("dots"),
		"r/!\"#$%&'()*+,-:;<=>?@[]^_`{|}~": []byte("all that is printable"), "r/%2f+": []byte("no escape"), strings.Repeat("l", 240) + "/" + strings.Repeat("m", 240): []byte("long"),
	} {
		begun := time.Now()
		mustPut(t, s, key, content)
		mustHave(t, s, key, content)
		for info, err := range s.List(t.Context(), key, "", 0) {
			if err != nil || info.Key != key || info.Size != int64(len(content)) || info.Time.Sub(begun).Abs() > time.Minute {
				t.Errorf("listed as %+v, %v; want %q of %d bytes", info, err, key, len(content))
			}
		}
	}
	if keys, err := Keys(t.Context(), s, "", "", 0); len(keys) != 8 || err != nil {
		t.Errorf("keys %q, %v", keys, err)
	}
	mustLack(t, s, "other")
	mustLack(t, s, "b/c/d.e.f")
	if _, err := s.Get(t.Context(), "b/c", 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get a part of a key: %v", err)
	}
}

func exists(t *testing.T, s store.Store) {
	mustPut(t, s, "x/y", []byte("one"))
	for _, content := range []string{"two", "one", "", strings.Repeat("large", 3<<20)} {
		err := s.Put(t.Context(), "x/y", Bytes([]byte(content)))
		if !errors.Is(err, store.ErrExists) || !errors.Is(err, fs.ErrExist) {
			t.Errorf("put again %d bytes: %v, want that it exists", len(content), err)
		}
	}
	mustHave(t, s, "x/y", []byte("one"))
}

func sizesThatLie(t *testing.T, s store.Store) {
	const part = 9 << 20 // stores that send parts do that with this much
	for i, c := range []struct{ says, is int }{{0, 1}, {1, 0}, {5, 4}, {4, 5}, {part, part - 1}, {part, part + 1}, {part, 0}, {-1, 0}} {
		key := fmt.Sprintf("lie/%d", i)
		b := Bytes(Random(1, c.is))
		b.Size = int64(c.says)
		if err := s.Put(t.Context(), key, b); err == nil {
			t.Errorf("%d bytes in place of %d were taken", c.is, c.says)
		}
		mustLack(t, s, key)
	}
}

func large(t *testing.T, s store.Store) {
	content := Random(2, 20<<20+17)
	mustPut(t, s, "large", content)
	r, err := s.Get(t.Context(), "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, r); n != int64(len(content)) || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if want := sha256.Sum256(content); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("other content")
	}
	got, err := ReadRange(t.Context(), s, "large", 8<<20-3, 9)
	if err != nil || !bytes.Equal(got, content[8<<20-3:8<<20+6]) {
		t.Errorf("%x, %v", got, err)
	}
}

func ranges(t *testing.T, s store.Store) {
	content := []byte("0123456789")
	mustPut(t, s, "r", content)
	mustPut(t, s, "empty", nil)
	for _, c := range []struct {
		key            string
		offset, length int64
		want           string
	}{
		{"r", 0, -1, "0123456789"}, {"r", 0, 10, "0123456789"}, {"r", 3, -1, "3456789"}, {"r", 9, 1, "9"},
		{"r", 2, 5, "23456"}, {"r", 0, 0, ""}, {"r", 5, 0, ""}, {"r", 10, 0, ""}, {"r", 10, -1, ""},
		{"empty", 0, -1, ""}, {"empty", 0, 0, ""},
	} {
		got, err := ReadRange(t.Context(), s, c.key, c.offset, c.length)
		if string(got) != c.want || err != nil {
			t.Errorf("%s from %d, %d bytes: %q, %v", c.key, c.offset, c.length, got, err)
		}
	}
	for _, c := range []struct{ offset, length int64 }{{11, -1}, {11, 0}, {5, 6}, {0, 11}, {10, 1}, {-1, 2}, {-1, -1}, {5, 1<<63 - 1}} {
		if got, err := ReadRange(t.Context(), s, "r", c.offset, c.length); err == nil {
			t.Errorf("from %d, %d bytes: %q without an error", c.offset, c.length, got)
		}
	}
	for _, length := range []int64{-1, 0, 3} {
		if _, err := ReadRange(t.Context(), s, "absent", 0, length); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent, %d bytes: %v", length, err)
		}
	}
}

func list(t *testing.T, s store.Store) {
	all := []string{"a/1", "a/2", "ab/1", "b", "c/d/e", "c/d/f", "c/g"}
	for _, key := range []string{"c/d/f", "a/2", "b", "c/g", "ab/1", "a/1", "c/d/e"} {
		mustPut(t, s, key, []byte(key))
	}
	for _, prefix := range []string{"", "a", "a/1", "c/", "c/d", "d"} {
		for _, after := range []string{"", "a/1", "a/1/", "a0", "c/d", "c/d/f", "c/g", "z"} {
			for _, limit := range []int{0, 1, 2} {
				var want []string
				for _, key := range all {
					if strings.HasPrefix(key, prefix) && key > after && (limit == 0 || len(want) < limit) {
						want = append(want, key)
					}
				}
				if got, err := Keys(t.Context(), s, prefix, after, limit); !slices.Equal(got, want) || err != nil {
					t.Errorf("prefix %q after %q limit %d: %q, %v; want %q", prefix, after, limit, got, err, want)
				}
			}
		}
	}
	for range s.List(t.Context(), "", "", 0) {
		break // must not call us again
	}
}

// listOrder has names where the order of bytes is not that of path elements.
func listOrder(t *testing.T, s store.Store) {
	keys := []string{"a/b", "a.git/x", "a-b/c", "a0", "a!", "a/b!/c", "a/b.c", "a/b0/d", "A", "a~/z", "aa/0"}
	for i, key := range keys {
		if key == "a/b" {
			key = "a/b/c"
			keys[i] = key
		}
		mustPut(t, s, key, nil)
	}
	slices.Sort(keys)
	if got, err := Keys(t.Context(), s, "", "", 0); !slices.Equal(got, keys) || err != nil {
		t.Errorf("%q, %v; want %q", got, err, keys)
	}
	for i, key := range keys {
		if got, err := Keys(t.Context(), s, "", key, 0); !slices.Equal(got, keys[i+1:]) || err != nil {
			t.Errorf("after %q: %q, %v", key, got, err)
		}
	}
}

func manyBlobs(t *testing.T, s store.Store) {
	const n = 1500
	var want []string
	var group sync.WaitGroup
	limit := make(chan struct{}, 8)
	for i := range n {
		key := fmt.Sprintf("many/%04d", i)
		want = append(want, key)
		group.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			if err := s.Put(t.Context(), key, Bytes([]byte(key))); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, c := range []struct {
		after string
		limit int
		want  []string
	}{{"", 0, want}, {"", 1200, want[:1200]}, {want[99], 0, want[100:]}, {want[99], 1001, want[100:1101]}, {want[n-2], 1, want[n-1:]}} {
		if got, err := Keys(t.Context(), s, "many/", c.after, c.limit); !slices.Equal(got, c.want) || err != nil {
			t.Errorf("after %q limit %d: %d keys, %v; want %d", c.after, c.limit, len(got), err, len(c.want))
		}
	}
}

func oneOfMany(t *testing.T, s store.Store) {
	for _, size := range []int{100, 9 << 20} {
		key := fmt.Sprintf("one/%d", size)
		var won atomic.Int32
		var winner atomic.Uint64
		var group sync.WaitGroup
		writers := 16
		if size > 1<<20 {
			writers = 4
		}
		for i := range writers {
			group.Go(func() {
				switch err := s.Put(t.Context(), key, Bytes(Random(uint64(i), size))); {
				case err == nil:
					won.Add(1)
					winner.Store(uint64(i))
				case !errors.Is(err, store.ErrExists):
					t.Error(err)
				}
			})
		}
		group.Wait()
		if won.Load() != 1 {
			t.Errorf("%d of %d writers have won", won.Load(), writers)
		}
		mustHave(t, s, key, Random(winner.Load(), size))
	}
}

func cancelled(t *testing.T, s store.Store) {
	for i, size := range []int{100, 20 << 20} {
		key := fmt.Sprintf("cancelled/%d", i)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("somebody lost patience")
		b := Bytes(Random(3, size))
		content := b.Open
		b.Open = func() (io.ReadCloser, error) {
			r, err := content()
			return &tripwire{ReadCloser: r, left: size / 2, trip: func() { cancel(why) }}, err
		}
		if err := s.Put(ctx, key, b); err == nil || !errors.Is(err, context.Canceled) && !errors.Is(err, why) {
			t.Errorf("a cancelled put: %v", err)
		}
		mustLack(t, s, key)
		mustPut(t, s, key, []byte("later"))
		if _, err := Read(ctx, s, key); err == nil {
			t.Error("a cancelled get succeeded")
		}
		if _, err := Keys(ctx, s, "", "", 0); err == nil {
			t.Error("a cancelled list succeeded")
		}
		cancel(nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	mustPut(t, s, "long", Random(4, 12<<20))
	r, err := s.Get(ctx, "long", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Read(make([]byte, 10))
	cancel()
	if n, err := io.Copy(io.Discard, r); err == nil {
		t.Errorf("a cancelled read ended well after %d bytes", n)
	}
}

// tripwire calls trip when left bytes have been read.
type tripwire struct {
	io.ReadCloser
	left int
	trip func()
}

func (w *tripwire) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if w.left -= n; w.left <= 0 {
		w.trip()
	}
	return n, err
}

func contentFails(t *testing.T, s store.Store) {
	broken := errors.New("a bad disk")
	for i, size := range []int64{10, 20 << 20} {
		key := fmt.Sprintf("fails/%d", i)
		err := s.Put(t.Context(), key, store.Blob{Size: size, Open: func() (io.ReadCloser, error) { return nil, broken }})
		if !errors.Is(err, broken) {
			t.Errorf("%v, want what the content said", err)
		}
		err = s.Put(t.Context(), key, store.Blob{Size: size, Open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(Random(5, int(size/2))), failing{broken})), nil
		}})
		if !errors.Is(err, broken) {
			t.Errorf("%v, want what the content said", err)
		}
		mustLack(t, s, key)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func deletes(t *testing.T, s store.Store) {
	mustPut(t, s, "d/x", []byte("1"))
	mustPut(t, s, "d/xy", []byte("2"))
	for _, key := range []string{"d/x", "d/x", "never/was", "d/x/z", "d"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	mustLack(t, s, "d/x")
	mustHave(t, s, "d/xy", []byte("2"))
	mustPut(t, s, "d/x", []byte("3")) // the name is free again
	mustHave(t, s, "d/x", []byte("3"))
	for _, key := range []string{"d/x", "d/xy"} {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	mustPut(t, s, "d", []byte("4")) // nothing is below it any more
	mustHave(t, s, "d", []byte("4"))
}

func refusedKeys(t *testing.T, s store.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "../x", "a/../b", "a/./b", ".tmp/x", "a/.b", "a b", "a\nb", "a\x00b", "ä", "a\\b",
		strings.Repeat("a", 251), strings.Repeat("a/", 450) + "a"} {
		if err := s.Put(t.Context(), key, Bytes(nil)); err == nil {
			t.Errorf("put %q succeeded", key)
		}
		if r, err := s.Get(t.Context(), key, 0, -1); err == nil {
			r.Close()
			t.Errorf("get %q succeeded", key)
		}
		if err := s.Delete(t.Context(), key); err == nil {
			t.Errorf("delete %q succeeded", key)
		}
	}
	if keys, err := Keys(t.Context(), s, "", "", 0); len(keys) > 0 || err != nil {
		t.Errorf("%q, %v are there", keys, err)
	}
}

// prefixOfKey: a store need not refuse such a key, but must not lose anything over it.
func prefixOfKey(t *testing.T, s store.Store) {
	mustPut(t, s, "p/q/r", []byte("longer"))
	mustPut(t, s, "p/s", []byte("short"))
	if err := s.Put(t.Context(), "p/q", Bytes([]byte("x"))); errors.Is(err, store.ErrExists) {
		t.Errorf("a key that is not there: %v", err)
	}
	if err := s.Put(t.Context(), "p/s/t", Bytes([]byte("x"))); errors.Is(err, store.ErrExists) {
		t.Errorf("a key that is not there: %v", err)
	}
	mustHave(t, s, "p/q/r", []byte("longer"))
	mustHave(t, s, "p/s", []byte("short"))
}

func counts(t *testing.T, s store.Store) {
	c, ok := s.(store.Counter)
	if !ok {
		t.Skip("this store does not count")
	}
	before := c.Counts()
	mustPut(t, s, "counted", Random(7, 1000))
	mustHave(t, s, "counted", Random(7, 1000))
	if _, err := ReadRange(t.Context(), s, "counted", 10, 90); err != nil {
		t.Error(err)
	}
	if _, err := Keys(t.Context(), s, "", "", 1); err != nil {
		t.Error(err)
	}
	after := c.Counts()
	got := store.Counts{Requests: after.Requests - before.Requests, Sent: after.Sent - before.Sent, Received: after.Received - before.Received}
	if want := (store.Counts{Requests: 4, Sent: 1000, Received: 1090}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
