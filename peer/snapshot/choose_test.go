package snapshot

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestChoose(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	now := time.Now().Truncate(time.Millisecond)
	m := describeRepo(t, v, repo, now)
	var all []Name
	for i, id := range []string{"a", "b", ""} {
		m.Time, m.ID = now.Add(time.Duration(i)*time.Minute).UTC(), id
		name, _, err := v.publish(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, name)
	}
	record := func(kind, sum, id string) {
		if err := v.record(context.Background(), m.Repository, Check{Kind: kind, Snapshot: sum, ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(at time.Time, id string, want int, notes int) {
		t.Helper()
		got, err := v.Choose(t.Context(), m.Repository, at, id)
		if want < 0 {
			if !errors.Is(err, ErrNoSnapshot) {
				t.Errorf("%+v, %v", got, err)
			}
			return
		}
		if err != nil || got.Name != all[want] || len(got.Notes) != notes {
			t.Errorf("%+v, %v, want %d", got, err, want)
		}
	}
	record(checkSame, all[1].Sum, "c")
	expect(time.Time{}, "", 2, 0)
	expect(time.Time{}, "a", 0, 0)
	expect(time.Time{}, "c", 1, 0)
	expect(time.Time{}, "d", -1, 0)
	expect(all[1].Time.Add(time.Second), "", 1, 0)
	expect(all[0].Time.Add(-time.Second), "", -1, 0)
	record(checkBad, all[1].Sum, "")
	expect(all[1].Time, "", 0, 1)
	expect(time.Time{}, "c", 1, 1)
	record(checkBad, all[2].Sum, "")
	expect(time.Time{}, "", 0, 2)
	time.Sleep(2 * time.Millisecond)
	record(checkGood, all[2].Sum, "")
	expect(time.Time{}, "", 2, 0)

	if got, err := v.Repositories(t.Context()); !slices.Equal(got, []string{"group/ip1"}) || err != nil {
		t.Error(got, err)
	}
}
