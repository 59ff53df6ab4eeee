// Package rescue keeps what a mirror push would destroy.
//
// A slave may have commits that its master does not know: somebody pushed them
// there by another way, or committed on the server's disk, or the two were apart
// for a while. The next mirror push makes the slave equal to its master all the
// same, because a copy that stops at the first surprise is no copy. So that nothing
// is lost by that, the old value of such a ref is first kept under another name, a
// rescued ref. Being a ref, it is safe from gc until a person restores it as a branch on the
// master, or drops it.
//
// # Names
//
//	refs/mirror/rescued/20261122T035557Z-1234abcd/refs/heads/main
//	refs/mirror/rescued/sam/20261122T035557Z-1234abcd/refs/heads/main
//
// That is the UTC time of the rescue, the first eight digits of the object's id, and
// the full name of the ref that had it. The second form, with the name of a server, is
// for what a master has fetched from a copy that cannot rescue by itself. Of one value of
// one ref there is one rescued ref, however often the push that threatens it is tried.
//
// Everything below refs/mirror/ belongs to one server: it is shown to nobody who
// clones or fetches, and neither sent nor accepted in a push.
package rescue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// Private is the prefix of all refs that belong to one server alone, and Prefix
// that of rescued ones.
const (
	Private = "refs/mirror"
	Prefix  = Private + "/rescued"
)

// IsPrivate reports whether a ref is Private or below it.
func IsPrivate(ref string) bool { return ref == Private || strings.HasPrefix(ref, Private+"/") }

// Name is the name of a rescued ref, in its parts.
type Name struct {
	Peer   string    // where it was fetched from; "" when it was rescued here
	Time   time.Time // UTC, in whole seconds
	Digits string    // the first eight of the object's id
	Ref    string    // full name of the ref that had the value
}

// digits is how many of an object id's a name has.
const digits = 8

// stampLayout is the time in a name: no colons, which refs may not have.
const stampLayout = "20060102T150405Z"

// NewName is the name for what ref had at the time. Peer is "" for what is
// rescued on the spot.
func NewName(peer string, at time.Time, oid, ref string) Name {
	return Name{Peer: peer, Time: at.UTC().Truncate(time.Second), Digits: oid[:min(digits, len(oid))], Ref: ref}
}

// Short is the name without Prefix, as people write it.
func (n Name) Short() string {
	short := n.Time.Format(stampLayout) + "-" + n.Digits + "/" + n.Ref
	if n.Peer != "" {
		short = n.Peer + "/" + short
	}
	return short
}

// Full is the name as a ref.
func (n Name) Full() string { return Prefix + "/" + n.Short() }

var stamp = lazyregexp.New(`^([0-9]{8}T[0-9]{6}Z)-([0-9a-f]{8})$`)

// ParseName reads a name in its full or its short form. ok is false for anything
// that Full could not have made.
func ParseName(text string) (n Name, ok bool) {
	short := strings.TrimPrefix(text, Prefix+"/")
	first, rest, _ := strings.Cut(short, "/")
	if n, ok = parseStamped(first, rest); ok {
		return n, true
	}
	second, rest, _ := strings.Cut(rest, "/")
	if n, ok = parseStamped(second, rest); !ok || mirrorcfg.CheckHost(first) != nil {
		return Name{}, false
	}
	n.Peer = first
	return n, sendpack.ValidRef(n.Full())
}

func parseStamped(element, ref string) (Name, bool) {
	m := stamp.FindStringSubmatch(element)
	if m == nil || !strings.HasPrefix(ref, "refs/") {
		return Name{}, false
	}
	at, err := time.Parse(stampLayout, m[1])
	if err != nil || at.Format(stampLayout) != m[1] {
		return Name{}, false
	}
	n := Name{Time: at, Digits: m[2], Ref: ref}
	return n, sendpack.ValidRef(n.Full())
}

// Entry is one rescued ref.
type Entry struct {
	Name string    `json:"name"`           // in its short form
	Ref  string    `json:"ref"`            // the ref that had the value
	OID  string    `json:"oid"`            // the value
	Time time.Time `json:"time"`           // when it was rescued
	Peer string    `json:"peer,omitempty"` // where it was fetched from
}

// Check reports as an error an entry that List could not have returned, such as
// one from another server.
func (e Entry) Check() error {
	n, ok := ParseName(e.Name)
	hex := strings.Trim(e.OID, "0123456789abcdef") == "" && (len(e.OID) == 40 || len(e.OID) == 64)
	if !ok || e.Name != n.Short() || n.Ref != e.Ref || n.Peer != e.Peer || !n.Time.Equal(e.Time) || !hex || !strings.HasPrefix(e.OID, n.Digits) {
		return fmt.Errorf("rescued ref %.200q at %.70q makes no sense", e.Name, e.OID)
	}
	return nil
}

// List returns the repository's rescued refs, oldest first. With a broken one
// among them there is an error too, and the others are returned.
func List(ctx context.Context, repo git.Repo) ([]Entry, error) {
	if may, err := repo.MayHaveRefsBelow(Prefix); err == nil && !may {
		return nil, nil
	}
	refs, err := repo.RefsBelow(ctx, Prefix)
	var entries []Entry
	for name, oid := range refs {
		if n, ok := ParseName(name); ok {
			entries = append(entries, Entry{Name: n.Short(), Ref: n.Ref, OID: oid, Time: n.Time, Peer: n.Peer})
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Name, b.Name))
	})
	return entries, err
}

// ErrNotRescued is wrapped when there is no rescued ref of a name.
var ErrNotRescued = errors.New("there is no such rescued ref")

// Find returns the rescued ref of that name, in its full or its short form.
func Find(ctx context.Context, repo git.Repo, name string) (Entry, error) {
	entries, err := List(ctx, repo)
	if found, ok := Pick(entries, name); ok {
		return found, nil
	}
	return Entry{}, errors.Join(fmt.Errorf("%w: %s", ErrNotRescued, name), err)
}

// Pick returns the entry of that name, in its full or its short form.
func Pick(entries []Entry, name string) (Entry, bool) {
	for _, e := range entries {
		if e.Name == strings.TrimPrefix(name, Prefix+"/") {
			return e, true
		}
	}
	return Entry{}, false
}

// Value is a ref and what it had.
type Value struct{ Ref, OID string }

// Kept is a value that is kept.
type Kept struct {
	Value
	Name   string // full
	Before bool   // it was already
}

// Keep makes rescued refs of the values: all of them, or an error and none. A value
// that is kept already is not kept again. Its object must exist. Peer is "" for what is rescued on
// the spot.
func Keep(ctx context.Context, repo git.Repo, peer string, values []Value, now time.Time) ([]Kept, error) {
	entries, err := List(ctx, repo)
	var broken *git.BrokenRefs
	if err != nil && !errors.As(err, &broken) { // what cannot be seen is kept once more
		return nil, err
	}
	before := map[Value]string{}
	for _, e := range slices.Backward(entries) { // of several the oldest remains
		if e.Peer == peer {
			before[Value{e.Ref, e.OID}] = Prefix + "/" + e.Name
		}
	}
	kept := make([]Kept, 0, len(values))
	create := map[string]string{}
	for _, v := range values {
		if name, ok := before[v]; ok {
			kept = append(kept, Kept{v, name, true})
			continue
		}
		name := NewName(peer, now, v.OID, v.Ref).Full()
		create[name] = v.OID
		kept = append(kept, Kept{v, name, false})
	}
	if len(create) == 0 {
		return kept, nil
	}
	if err := repo.CreateRefs(ctx, create); err != nil {
		return nil, fmt.Errorf("keep what would be lost: %w", err)
	}
	return kept, nil
}

// Drop deletes the rescued ref of exactly that name, in its full or its short
// form, and returns what it was. The objects remain until git gc prunes them.
func Drop(ctx context.Context, repo git.Repo, name string) (Entry, error) {
	e, err := Find(ctx, repo, name)
	if err != nil {
		return Entry{}, err
	}
	if err := repo.DeleteRef(ctx, Prefix+"/"+e.Name, e.OID); err != nil {
		return Entry{}, fmt.Errorf("drop %s: %w", e.Name, err)
	}
	return e, nil
}

// Target is the ref that a value is to be restored as: the branch of that name, or
// the ref, when it is a full name.
func Target(as string) (string, error) {
	ref := as
	if !strings.HasPrefix(as, "refs/") {
		ref = "refs/heads/" + as
	}
	if !sendpack.ValidRef(ref) || IsPrivate(ref) || strings.HasPrefix(as, "-") {
		return "", fmt.Errorf("%.200q is no name for a branch: write it like rescued-main, or a full name like refs/tags/v1", as)
	}
	return ref, nil
}

// Restore makes the ref that Target names, which must not be there, with the
// value oid, whose objects must be. It returns the ref.
func Restore(ctx context.Context, repo git.Repo, oid, as string) (string, error) {
	ref, err := Target(as)
	if err != nil {
		return "", err
	}
	err = repo.CreateRefs(ctx, map[string]string{ref: oid})
	if errors.Is(err, git.ErrRefExists) {
		return "", fmt.Errorf("%s is there already: give another name", ref)
	}
	if err != nil {
		return "", fmt.Errorf("restore %.10s as %s: %w", oid, ref, err)
	}
	return ref, nil
}
