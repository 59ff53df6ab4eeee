package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-shell/peer/store"
)

// memory is a store in this process, for tests that damage it or run thousands of operations. That a real
// store behaves like it is what package storetest is for.
type memory struct {
	mu       sync.Mutex
	blobs    map[string][]byte
	times    map[string]time.Time
	retained map[string]time.Time
	now      func() time.Time
	// before, when set, is called before each operation with its name ("put", "get", "list",
	// "delete") and key; its error is the operation's.
	before func(operation, key string) error
	puts   int
}

func newMemory() *memory {
	return &memory{blobs: map[string][]byte{}, times: map[string]time.Time{}, retained: map[string]time.Time{}, now: time.Now}
}

func (m *memory) hook(operation, key string) error {
	if m.before == nil {
		return nil
	}
	return m.before(operation, key)
}

func (m *memory) Put(_ context.Context, key string, b store.Blob) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if err := m.hook("put", key); err != nil {
		return err
	}
	r, err := b.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if int64(len(data)) != b.Size {
		return fmt.Errorf("%d bytes in place of %d", len(data), b.Size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.blobs[key]; taken {
		return fmt.Errorf("%s %w", key, store.ErrExists)
	}
	m.blobs[key], m.times[key] = data, m.now()
	if !b.Retain.IsZero() {
		m.retained[key] = b.Retain
	}
	m.puts++
	return nil
}

func (m *memory) Get(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := m.hook("get", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.blobs[key]
	if !ok {
		return nil, fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	}
	data = data[min(offset, int64(len(data))):]
	if length >= 0 {
		data = data[:min(length, int64(len(data)))]
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (m *memory) List(_ context.Context, prefix, after string, limit int) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := m.hook("list", prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		m.mu.Lock()
		var found []store.Info
		for _, key := range slices.Sorted(maps.Keys(m.blobs)) {
			if strings.HasPrefix(key, prefix) && key > after && (limit == 0 || len(found) < limit) {
				found = append(found, store.Info{Key: key, Size: int64(len(m.blobs[key])), Time: m.times[key]})
			}
		}
		m.mu.Unlock()
		for _, info := range found {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (m *memory) Delete(_ context.Context, key string) error {
	if err := m.hook("delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retained[key].After(m.now()) {
		return fmt.Errorf("%s %w", key, store.ErrLocked)
	}
	delete(m.blobs, key)
	delete(m.times, key)
	return nil
}

func (m *memory) Retain(_ context.Context, key string, until time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.blobs[key]; !ok {
		return fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	}
	if until.After(m.retained[key]) {
		m.retained[key] = until
	}
	return nil
}

func (m *memory) Retained(_ context.Context, key string) (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.retained[key], nil
}

func testVault(t testing.TB) (*Vault, *memory) {
	t.Helper()
	m := newMemory()
	return &Vault{Store: m, Scratch: t.TempDir(), Server: "frodo", Program: "mirror-shell test"}, m
}

func TestPublishAndLoad(t *testing.T) {
	v, m := testVault(t)
	oid := strings.Repeat("a", 40)
	manifest := &Manifest{
		Format: Format, Repository: "group/ip1", Time: time.UnixMilli(1795319757123).UTC(), ID: "night-1", Server: "frodo",
		Program: "mirror-shell test", ObjectFormat: "sha1", Head: "refs/heads/main", Digest: strings.Repeat("d", 64),
		Refs: map[string]string{"refs/heads/main": oid},
	}
	name, _, err := v.publish(t.Context(), manifest)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := ParseName(name.Key()); err != nil || parsed != name {
		t.Errorf("%+v, %v, want %+v", parsed, err, name)
	}
	for _, find := range []func() (Name, error){
		func() (Name, error) { return v.Latest(t.Context(), "group/ip1") },
		func() (Name, error) { return v.At(t.Context(), "group/ip1", manifest.Time) },
	} {
		if got, err := find(); err != nil || got != name {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if got, err := v.At(t.Context(), "group/ip1", manifest.Time.Add(-time.Millisecond)); err == nil {
		t.Errorf("found %+v, which is newer", got)
	}
	got, err := v.Load(t.Context(), name)
	if err != nil || got.Refs["refs/heads/main"] != oid {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range m.blobs[name.Key()] {
		m.blobs[name.Key()][i] ^= 1
		if _, err := v.Load(t.Context(), name); err == nil {
			t.Errorf("byte %d was changed, and nobody noticed", i)
		}
		m.blobs[name.Key()][i] ^= 1
	}
}

// spoilPacks damages all packs, as a disk does.
func (m *memory) spoilPacks() {
	for key, data := range m.blobs {
		if strings.HasSuffix(key, ".pack") {
			data[len(data)/2] ^= 1
		}
	}
}
