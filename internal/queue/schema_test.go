package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"mirror-shell/internal/inbox"
)

// Tables of the first version are brought up to date, by several processes at once.
func TestMigration(t *testing.T) { onBothInTurn(t, testMigration) }

func testMigration(t *testing.T) {
	dir := t.TempDir()
	address := databaseURL(t, dir)
	var db *sql.DB
	var err error
	d := sqliteDialect
	if address == "" {
		db, err = sql.Open("sqlite", dataSource(databasePath(dir)))
	} else {
		db, d, err = openPostgres(address)
	}
	if err != nil {
		t.Fatal(err)
	}
	all := steps
	steps = all[:1]
	err = migrate(t.Context(), db, d, func(context.Context, querier) error { return nil })
	steps = all
	if err == nil {
		_, err = db.Exec(`INSERT INTO jobs (server, repository, peer, want, origin, oldest, newest, run_at, created)
			VALUES ('frodo', 'ip1', 'sam', 1, 'list', 5, 7, 5, 5)`)
	}
	if err == nil {
		_, err = db.Exec(`INSERT INTO peers (server, peer) VALUES ('frodo', 'sam')`)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			q, err := Open(t.Context(), Options{StateDir: dir, URL: address, Server: "frodo"})
			if err != nil {
				t.Error(err)
				return
			}
			defer q.Close()
			j := job{}
			err = q.read(t.Context(), func(tx *tx) (err error) { j, err = tx.job(t.Context(), samKey); return err })
			if err != nil || j.changed != 7 || j.want != 1 {
				t.Errorf("%+v, %v", j, err)
			}
		})
	}
	wg.Wait()
	q := open(t, dir, nil)
	settle(t, q, mustClaim(t, q, samKey), nil)
	checkState(t, q, samKey, StateOK)
	if version, err := readSchema(t.Context(), q.db); err != nil || version != len(steps) {
		t.Errorf("version %d, %v", version, err)
	}
}

// What every look of a worker asks for is found in an index, however long the table is.
func TestPlans(t *testing.T) { onBoth(t, testPlans) }

func testPlans(t *testing.T) {
	q, _ := openFake(t)
	var changes []Change
	for i := range fewer(t, 300, 3000) {
		changes = append(changes, Change{Key: Key{fmt.Sprint("r", i), fmt.Sprint("peer", i%3)}, Origin: inbox.OriginList})
	}
	if _, err := q.Enqueue(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	explain, scan := "EXPLAIN QUERY PLAN ", "SCAN j"
	if onPostgres(t) {
		explain, scan = "EXPLAIN ", "Seq Scan on jobs"
	}
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			if _, err := q.db.Exec("ANALYZE"); err != nil {
				t.Fatal(err)
			}
		}
		for text, index := range map[string]string{q.firstInLine: "jobs_due", q.claimable: "jobs_due", sqlRunning: "jobs_running"} {
			args := []any{"frodo", "peer1", 0}
			if text == sqlRunning {
				args = args[:1]
			}
			plan := explained(t, q, explain+text, args...)
			if !strings.Contains(plan, index) || strings.Contains(plan, scan) {
				t.Errorf("analyzed %v: %s\n%s", analyzed, text, plan)
			}
		}
	}
}

func explained(t *testing.T, q *Queue, text string, args ...any) string {
	t.Helper()
	rows, err := q.db.Query(text, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	for rows.Next() {
		fields := make([]any, len(columns))
		for i := range fields {
			fields[i] = new(string)
		}
		if err := rows.Scan(fields...); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&plan, *fields[len(fields)-1].(*string))
	}
	return plan.String()
}
