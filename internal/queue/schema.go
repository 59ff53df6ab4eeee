package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// steps bring the tables from one version to the next; their number is the version, kept in meta under
// "schema". A step that has been released never changes. NAME stands for the type of a name.
var steps = [][]string{{
	`CREATE TABLE jobs (
		server NAME NOT NULL, repository NAME NOT NULL, peer NAME NOT NULL,
		want BIGINT NOT NULL DEFAULT 0, seen BIGINT NOT NULL DEFAULT 0, done BIGINT NOT NULL DEFAULT 0,
		origin TEXT NOT NULL DEFAULT '', oldest BIGINT NOT NULL DEFAULT 0, newest BIGINT NOT NULL DEFAULT 0,
		later BIGINT NOT NULL DEFAULT 0, later_origin TEXT NOT NULL DEFAULT '',
		run_at BIGINT NOT NULL DEFAULT 0, lease BIGINT NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
		probe BIGINT NOT NULL DEFAULT 0, run BIGINT NOT NULL DEFAULT 0, settled BIGINT NOT NULL DEFAULT 0,
		attempt BIGINT NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
		note TEXT NOT NULL DEFAULT '', digest TEXT NOT NULL DEFAULT '',
		last_success BIGINT NOT NULL DEFAULT 0, last_attempt BIGINT NOT NULL DEFAULT 0,
		created BIGINT NOT NULL DEFAULT 0, version BIGINT NOT NULL DEFAULT 0,
		PRIMARY KEY (server, repository, peer))`,
	`CREATE INDEX jobs_due ON jobs (server, peer, run_at) WHERE want > done`,
	`CREATE INDEX jobs_running ON jobs (server, peer) WHERE owner <> ''`,
	`CREATE TABLE peers (
		server NAME NOT NULL, peer NAME NOT NULL,
		paused BIGINT NOT NULL DEFAULT 0, down_since BIGINT NOT NULL DEFAULT 0, last_down BIGINT NOT NULL DEFAULT 0,
		attempt BIGINT NOT NULL DEFAULT 0, retry_at BIGINT NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
		runs BIGINT NOT NULL DEFAULT 0, down_run BIGINT NOT NULL DEFAULT 0, version BIGINT NOT NULL DEFAULT 0,
		PRIMARY KEY (server, peer))`,
}, {
	// When the newest change was recorded was not kept before; when it was made is the nearest.
	`ALTER TABLE jobs ADD COLUMN changed BIGINT NOT NULL DEFAULT 0`,
	`UPDATE jobs SET changed = newest`,
}}

const (
	sqlCreateMeta = `CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)`
	sqlGetSchema  = `SELECT value FROM meta WHERE name = 'schema'`
	sqlPutSchema  = `INSERT INTO meta (name, value) VALUES ('schema', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
)

// migrate brings the tables to the version of this program, in one transaction. A look without one
// comes first, because every start of every program passes here. Where there are no tables, created is called in
// the transaction that makes them.
func migrate(ctx context.Context, db database, d *dialect, created func(context.Context, querier) error) error {
	if version, err := readSchema(ctx, db); err == nil && version == len(steps) {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if d.alone != "" {
		if _, err := tx.ExecContext(ctx, d.alone); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, sqlCreateMeta); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	version, err := readSchema(ctx, tx)
	switch {
	case err != nil:
		return err
	case version > len(steps):
		return fmt.Errorf("%w: its schema is %d, this program knows %d: upgrade mirror-shell", ErrNewerSchema, version, len(steps))
	case version == len(steps):
		return nil
	}
	for _, step := range steps[version:] {
		for _, text := range step {
			if _, err := tx.ExecContext(ctx, strings.ReplaceAll(text, "NAME", d.nameType)); err != nil {
				return fmt.Errorf("create tables: %w", err)
			}
		}
	}
	if version == 0 {
		if err := created(ctx, tx); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, sqlPutSchema, strconv.Itoa(len(steps))); err != nil {
		return err
	}
	return tx.Commit()
}

// readSchema returns the version of the tables, 0 for a database without any.
func readSchema(ctx context.Context, db querier) (int, error) {
	var text string
	err := db.QueryRowContext(ctx, sqlGetSchema).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	version, err := strconv.Atoi(text)
	if err != nil || version < 1 {
		return 0, fmt.Errorf("%w: schema version %q in table meta is not a number", errImpossible, text)
	}
	return version, nil
}
