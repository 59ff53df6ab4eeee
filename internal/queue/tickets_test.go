package queue

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func tickets(t *testing.T, q *Queue, keys ...Key) []Ticket {
	t.Helper()
	tickets, err := q.Tickets(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	return tickets
}

// known waits for outcomes that are known already.
func known(t *testing.T, q *Queue, tickets []Ticket, want map[Key]State) {
	t.Helper()
	await(t.Context(), q, tickets).wait(t, want)
}

func TestTicketsRecordNothing(t *testing.T) { onBoth(t, testTicketsRecordNothing) }

func testTicketsRecordNothing(t *testing.T) {
	q, _ := openFake(t)
	enqueue(t, q, samKey)
	before := row(t, q, samKey)
	got := tickets(t, q, gollumKey, samKey, Key{"unknown", "sam"}, samKey)
	if len(got) != 2 || got[0].Key != samKey || got[1] != got[0] {
		t.Errorf("tickets %+v", got)
	}
	if after := row(t, q, samKey); after != before {
		t.Errorf("%+v became %+v", before, after)
	}
	if rows, err := q.Rows(t.Context(), Filter{}); err != nil || len(rows) != 1 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	if got := tickets(t, q); got != nil {
		t.Errorf("tickets of nothing: %v", got)
	}
}

// What ended before the call, in a run that had every change in view, is told at once.
func TestTicketsOfRunsThatEnded(t *testing.T) { onBoth(t, testTicketsOfRunsThatEnded) }

func testTicketsOfRunsThatEnded(t *testing.T) {
	for err, want := range map[error]State{nil: StateOK, errors.New("x"): StateFailed, ErrHeld: StateHeld, ErrDropped: StateDropped, ErrPeerDown: StateDown} {
		t.Run(string(want), func(t *testing.T) {
			q, clock := openFake(t)
			enqueue(t, q, samKey)
			settle(t, q, mustClaim(t, q, samKey), err)
			clock.add(time.Hour)
			known(t, q, tickets(t, q, samKey), map[Key]State{samKey: want})
		})
	}
}

// A run under way that began with every change in view is the one that counts, however it ends.
func TestTicketsOfRunUnderWay(t *testing.T) { onBoth(t, testTicketsOfRunUnderWay) }

func testTicketsOfRunUnderWay(t *testing.T) {
	for err, want := range map[error]State{nil: StateOK, errors.New("x"): StateFailed, ErrPeerDown: StateDown} {
		t.Run(string(want), func(t *testing.T) {
			q, _ := openFake(t)
			enqueue(t, q, samKey)
			c := mustClaim(t, q, samKey)
			a := await(t.Context(), q, tickets(t, q, samKey))
			time.Sleep(60 * time.Millisecond)
			if s := a.state(samKey); s != "" {
				t.Fatalf("%s before the run ended", s)
			}
			settle(t, q, c, err)
			a.wait(t, map[Key]State{samKey: want})
		})
	}
}

// A run that began before the latest change says nothing, whether it is under way or over.
func TestTicketsOfEarlierRuns(t *testing.T) { onBoth(t, testTicketsOfEarlierRuns) }

func testTicketsOfEarlierRuns(t *testing.T) {
	for _, over := range []bool{false, true} {
		for _, early := range []error{nil, errors.New("x"), ErrPeerDown} {
			t.Run(fmt.Sprint(over, " ", early), func(t *testing.T) {
				q, clock := openFake(t)
				enqueue(t, q, samKey)
				c := mustClaim(t, q, samKey)
				enqueue(t, q, samKey)
				if over {
					settle(t, q, c, early)
				}
				a := await(t.Context(), q, tickets(t, q, samKey))
				if !over {
					settle(t, q, c, early)
				}
				time.Sleep(60 * time.Millisecond)
				if s := a.state(samKey); s != "" {
					t.Fatalf("%s by a run of before", s)
				}
				clock.add(time.Hour)
				settle(t, q, mustClaim(t, q, samKey), nil)
				a.wait(t, map[Key]State{samKey: StateOK})
			})
		}
	}
}

// Another repository's run that began after the call finds the peer down.
func TestTicketsOfPeerFoundDown(t *testing.T) { onBoth(t, testTicketsOfPeerFoundDown) }

func testTicketsOfPeerFoundDown(t *testing.T) {
	q, clock := openFake(t)
	other := Key{"other", "sam"}
	enqueue(t, q, other)
	clock.add(time.Millisecond)
	enqueue(t, q, samKey)
	before := mustClaim(t, q, other)
	a := await(t.Context(), q, tickets(t, q, samKey))
	settle(t, q, before, ErrPeerDown) // it had begun before the call
	time.Sleep(60 * time.Millisecond)
	if s := a.state(samKey); s != "" {
		t.Fatalf("%s by a run of before", s)
	}
	clock.add(time.Hour)
	settle(t, q, mustClaim(t, q, other), ErrPeerDown)
	a.wait(t, map[Key]State{samKey: StateDown})
	if err := q.Pause(t.Context(), "sam"); err != nil {
		t.Fatal(err)
	}
	known(t, q, tickets(t, q, samKey), map[Key]State{samKey: StatePaused})
}
