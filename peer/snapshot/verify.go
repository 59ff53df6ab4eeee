package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// VerifyOptions choose what Verify looks at. The zero value compares all manifests with a listing of the store.
type VerifyOptions struct {
	// Latest looks at the newest snapshot only.
	Latest bool
	// ReadData reads every byte of all that the snapshots need, each object once.
	ReadData bool
	// Drill restores the newest snapshot into Vault.Scratch, checks it in full and with git fsck, and
	// records the result in the vault.
	Drill bool
	// Expect is the Sum of the snapshot that this server knows to be the newest, or "". A vault
	// alone cannot tell that its newest snapshot was removed.
	Expect string
	// Progress, when set, is called with the bytes that were read since the last call, by several goroutines at once.
	Progress func(bytes int64)
}

// Fault is something wrong in a vault.
type Fault struct {
	Key     string // of the store
	Problem string
	// Snapshots need what is at the key, newest first.
	Snapshots []Name
}

// Findings say what Verify found.
type Findings struct {
	Repository string
	Snapshots  int   // that were looked at
	Objects    int   // that they need
	Bytes      int64 // of content, or of encrypted bytes, that were read
	// Unreferenced are the blobs that no snapshot needs, and their bytes: of backups that run or that
	// were killed. They are no fault. Both are 0 when only the latest was looked at.
	Unreferenced      int
	UnreferencedBytes int64
	Faults            []Fault // by key
	Drill             *Check  // nil: there was none
}

// OK reports that nothing is wrong.
func (f Findings) OK() bool {
	return len(f.Faults) == 0 && (f.Drill == nil || f.Drill.Error == "")
}

// Verify compares a repository's snapshots with what is in the store. What is wrong there is in the findings; an error
// says that it could not be found out (the store's errors; ErrKey; ErrNoSnapshot). It may run beside backups
// and beside prune.
func (v *Vault) Verify(ctx context.Context, repository string, o VerifyOptions) (Findings, error) {
	ver := &verification{v: v, o: o, needs: map[string]Object{}, bad: map[string]string{}, sums: map[string]bool{}, damaged: map[string]string{}}
	ver.found.Repository = repository
	err := ver.run(ctx, repository)
	ver.found.Bytes = ver.read.Load()
	slices.SortStableFunc(ver.found.Faults, func(a, b Fault) int { return strings.Compare(a.Key, b.Key) })
	if err != nil {
		return ver.found, fmt.Errorf("verify %s: %w", repository, err)
	}
	return ver.found, nil
}

type verification struct {
	v     *Vault
	o     VerifyOptions
	found Findings
	sums  map[string]bool   // of all snapshots in the listing
	look  []Name            // those that are looked at
	prev  []link            // what they say of the one before
	gone  []Name            // were in the listing, and could not be read
	needs map[string]Object // by key
	mu    sync.Mutex
	bad   map[string]string // key → problem
	read  atomic.Int64

	damaged map[string]string // what is damaged, beyond doubt, of the snapshots, by their Sums
}

// link is a snapshot and the Sum of the one before it.
type link struct {
	Name
	previous string
}

func (ver *verification) run(ctx context.Context, repository string) error {
	// Manifests are listed before data: what one names was there before it.
	for name, err := range ver.v.Snapshots(ctx, repository) {
		if err != nil {
			return err
		}
		if ver.sums[name.Sum] = true; !ver.o.Latest || len(ver.look) == 0 {
			ver.look = append(ver.look, name)
		}
	}
	if len(ver.look) == 0 && ver.o.Expect == "" {
		return ErrNoSnapshot
	}
	if err := ver.manifests(ctx); err != nil {
		return err
	}
	if err := ver.compare(ctx, repository); err != nil {
		return err
	}
	if ver.o.ReadData {
		if err := ver.readAll(ctx); err != nil {
			return err
		}
	}
	if err := ver.blame(ctx); err != nil {
		return err
	}
	if err := ver.chain(ctx, repository); err != nil {
		return err
	}
	if len(ver.look) == 0 {
		return nil
	}
	if ver.o.Drill {
		if err := ver.drill(ctx, ver.look[0]); err != nil {
			return err
		}
	}
	return ver.judge(ctx, repository)
}

func (ver *verification) fault(key, problem string, needed ...Name) {
	ver.found.Faults = append(ver.found.Faults, Fault{Key: key, Problem: problem, Snapshots: needed})
}

// load reads a manifest. What is wrong with it is a problem, and an error only what keeps us from finding out.
func (ver *verification) load(ctx context.Context, name Name) (m *Manifest, problem string, err error) {
	for again := false; ; again = true {
		stored, err1 := ver.v.readSmall(ctx, name.Key(), maxManifest)
		if errors.Is(err1, fs.ErrNotExist) {
			return nil, "is gone", nil
		}
		if err1 != nil && !errors.Is(err1, ErrDamaged) {
			return nil, "", err1
		}
		if err = err1; err == nil {
			m, err = ver.v.decodeManifest(name, stored)
		}
		if again || !errors.Is(err, ErrDamaged) { // see readAgain
			break
		}
	}
	switch {
	case err == nil:
		return m, "", nil
	case errors.Is(err, ErrKey) && len(ver.v.Identities) == 0:
		return nil, "", err
	case errors.Is(err, ErrDamaged):
		ver.damage(name, err.Error())
	}
	return nil, err.Error(), nil
}

// disputed is what is wrong with an object of which one snapshot says another thing than others.
const disputed = "snapshots say different things about it"

// manifests reads the manifests, and notes what they need.
func (ver *verification) manifests(ctx context.Context) error {
	for _, name := range ver.look {
		m, problem, err := ver.load(ctx, name)
		switch {
		case err != nil:
			return err
		case problem == "is gone":
			ver.gone = append(ver.gone, name)
			continue
		case problem != "":
			ver.fault(name.Key(), problem, name)
			continue
		}
		ver.found.Snapshots++
		ver.prev = append(ver.prev, link{name, m.Previous})
		for _, o := range m.Objects() {
			o.Retained = time.Time{}
			if other, known := ver.needs[o.Key]; known && other != o {
				ver.bad[o.Key] = disputed
			}
			ver.needs[o.Key] = o
		}
	}
	ver.found.Objects = len(ver.needs)
	return nil
}

// compare compares what is needed with a listing.
func (ver *verification) compare(ctx context.Context, repository string) error {
	there := make(map[string]bool, len(ver.needs))
	for info, err := range ver.v.Store.List(ctx, dataOf(repository), "", 0) {
		if err != nil {
			return fmt.Errorf("list data: %w", err)
		}
		o, needed := ver.needs[info.Key]
		if !needed {
			if !ver.o.Latest {
				ver.found.Unreferenced++
				ver.found.UnreferencedBytes += info.Size
			}
			continue
		}
		there[info.Key] = true
		if size, _ := o.Stored(); size != info.Size && ver.bad[info.Key] == "" {
			ver.bad[info.Key] = fmt.Sprintf("has %d bytes in place of %d", info.Size, size)
		}
	}
	var missing []string
	for key := range ver.needs {
		if !there[key] {
			ver.bad[key] = "is missing"
			missing = append(missing, key)
		}
	}
	return each(ctx, transfers, missing, ver.reallyMissing)
}

// readAll reads what is there, with the right size, to the last byte.
func (ver *verification) readAll(ctx context.Context) error {
	var all []Object
	for _, key := range slices.Sorted(maps.Keys(ver.needs)) {
		if ver.bad[key] == "" {
			all = append(all, ver.needs[key])
		}
	}
	return each(ctx, transfers, all, func(ctx context.Context, o Object) error {
		err := ver.readOne(ctx, o)
		if errors.Is(err, ErrDamaged) {
			err = ver.readAgain(ctx, o, err)
		}
		if errors.Is(err, ErrDamaged) {
			ver.mu.Lock()
			defer ver.mu.Unlock()
			ver.bad[o.Key] = strings.TrimPrefix(err.Error(), o.Key+": ")
			return nil
		}
		return err
	})
}

func (ver *verification) readOne(ctx context.Context, o Object) error {
	r, err := ver.v.open(ctx, o)
	if errors.Is(err, ErrKey) { // then the stored bytes alone
		o.Size, o.SHA256 = o.Stored()
		o.Encoding = ""
		r, err = ver.v.open(ctx, o)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyBuffer(ver, r, make([]byte, copySize))
	return err
}

// Write counts what was read.
func (ver *verification) Write(p []byte) (int, error) {
	ver.read.Add(int64(len(p)))
	if ver.o.Progress != nil {
		ver.o.Progress(int64(len(p)))
	}
	return len(p), nil
}

// blame says which snapshots need what is bad, reading the manifests a second time, because few
// vaults have faults. What no snapshot needs any longer was pruned in between.
func (ver *verification) blame(ctx context.Context) error {
	if len(ver.bad) == 0 {
		return nil
	}
	users := map[string][]Name{}
	for _, name := range ver.look {
		m, problem, err := ver.load(ctx, name)
		if err != nil {
			return err
		}
		if problem != "" {
			continue
		}
		for _, o := range m.Objects() {
			if ver.bad[o.Key] == "" {
				continue
			}
			users[o.Key] = append(users[o.Key], name)
			if ver.bad[o.Key] == disputed {
				if err = ver.readOne(ctx, o); err == nil {
					continue // this one is right
				} else if !errors.Is(err, ErrDamaged) {
					return err
				}
			}
			ver.damage(name, o.Key+": "+ver.bad[o.Key])
		}
	}
	for key, names := range users {
		ver.fault(key, ver.bad[key], names...)
	}
	return nil
}

// chain finds snapshots that are no longer there although nobody says that he removed them.
func (ver *verification) chain(ctx context.Context, repository string) error {
	removed, err := ver.v.removed(ctx, repository)
	if errors.Is(err, ErrDamaged) {
		ver.fault(marksOf(repository), err.Error())
	} else if err != nil {
		return err
	}
	for _, name := range ver.gone {
		if !removed[name.Sum] {
			ver.fault(name.Key(), "is gone", name)
		}
	}
	lost := func(sum string) bool { return sum != "" && !ver.sums[sum] && !removed[sum] }
	for _, l := range ver.prev {
		if lost(l.previous) {
			ver.fault(snapshotsOf(repository), fmt.Sprintf("a snapshot was removed, and not by prune: that with the sum %s, before %s", l.previous, describe(l.Name)), l.Name)
		}
	}
	if lost(ver.o.Expect) {
		ver.fault(snapshotsOf(repository), fmt.Sprintf("the newest snapshot that this server made was removed, and not by prune: that with the sum %s", ver.o.Expect))
	}
	return nil
}
