package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"
)

// What a store answers wrongly once is no damage: a "not found" of a proxy for what is listed, a listing that lacks
// something, bytes that were changed on the way. No snapshot is marked for it.
func TestOneWrongAnswerMarksNothing(t *testing.T) {
	for what, fail := range map[string]func(w *months, key string){
		"not found, always": func(w *months, key string) {
			w.store.before = func(operation, asked string) error {
				if operation == "get" && asked == key {
					return fmt.Errorf("%s: %w", key, fs.ErrNotExist)
				}
				return nil
			}
		},
		"not listed, once": func(w *months, key string) {
			good := w.store.blobs[key]
			delete(w.store.blobs, key)
			listed := false
			w.store.before = func(operation, asked string) error {
				w.store.mu.Lock()
				defer w.store.mu.Unlock()
				if operation == "get" && listed {
					w.store.blobs[key] = good
				}
				listed = listed || operation == "list" && asked == dataOf("ip1")
				return nil
			}
		},
		"changed, once": func(w *months, key string) {
			w.store.wrongOnce(key, bytes.ToUpper(w.store.blobs[key]))
		},
		"manifest changed, once": func(w *months, _ string) {
			name, _ := w.Latest(context.Background(), "ip1")
			w.store.wrongOnce(name.Key(), append([]byte(" "), w.store.blobs[name.Key()]...))
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newMonths(t)
			for range 3 {
				w.snapshot("a", fmt.Sprint(w.now()))
				w.pass(time.Hour)
			}
			fail(w, w.object("a").Key)
			got, err := w.Verify(t.Context(), "ip1", VerifyOptions{ReadData: true})
			if errors.Is(err, ErrDamaged) {
				t.Errorf("%v", err)
			}
			if len(got.Faults) > 0 && strings.Contains(got.Faults[0].Problem, "gone") {
				t.Errorf("%+v", got)
			}
			w.store.before = nil
			if marks := w.below("checks/"); len(marks) > 0 {
				t.Errorf("%+v, %v; marked: %q", got, err, marks)
			}
		})
	}
}

// wrongOnce has the store answer so when it is asked for a blob, and be right from the second time on.
func (m *memory) wrongOnce(key string, wrong []byte) {
	good, asked := m.blobs[key], 0
	m.blobs[key] = wrong
	m.before = func(operation, of string) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if operation == "get" && of == key {
			if asked++; asked > 1 {
				m.blobs[key] = good
			}
		}
		return nil
	}
}

// Of snapshots that say different things about an object that is marked which is wrong, and not those that are right.
func TestWhoIsWrongAboutAnObject(t *testing.T) {
	w := newMonths(t)
	first := w.snapshot("a")
	w.pass(time.Hour)
	wrong := w.object("a")
	wrong.SHA256 = strings.Repeat("0", 64)
	second := w.snapshotOf(w.manifest(), wrong)
	w.pass(time.Hour)
	third := w.snapshot("a", "b")
	for range 2 {
		w.pass(time.Hour)
		got, err := w.Verify(t.Context(), "ip1", VerifyOptions{})
		if err != nil || len(got.Faults) != 1 || len(got.Faults[0].Snapshots) != 3 {
			t.Errorf("%+v, %v", got, err)
		}
	}
	judged, err := w.verdicts(t.Context(), "ip1")
	if err != nil || judged[first.Sum] != "" || judged[second.Sum] != checkBad || judged[third.Sum] != "" {
		t.Errorf("%v: %s, %s, %s; %v", judged, first.Sum, second.Sum, third.Sum, err)
	}
}
