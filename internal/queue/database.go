package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// dialect is all that differs between the databases, beside how they are opened.
type dialect struct {
	// shared: nodes with other state directories may use the same rows. Then the database's clock counts,
	// and a worker has to look for itself whether others left it something to do.
	shared bool

	nameType string                   // a column for names, compared byte by byte
	mark     func(n int) string       // stands for the n-th parameter in long statements
	listed   func(lock string) string // FROM what and WHERE: the jobs j of server $1 in the lists $2 and $3, perhaps with more
	among    string                   // WHERE for UPDATE: jobs of server $1 with a repository of $2 and a peer of $3
	lists    func([]Key) (any, any)   // makes these lists
	lock     string                   // ends a SELECT whose rows are written afterwards in the same transaction
	skip     string                   // the same, but rows that somebody else is about to write are left out
	clock    string                   // asks for the database's time in unix milliseconds; "": Options.Now
	alone    string                   // lets in one transaction at a time that creates tables

	passing func(error) bool  // the transaction failed because of another one: run it again
	tidy    func(error) error // makes an error fit to be shown
}

// transactionTimeout bounds one transaction or one look: the connection to a database may hang for ever.
const transactionTimeout = time.Minute

// errImpossible: a row holds what nobody has stored there.
var errImpossible = errors.New("damaged row")

// errConflict: a row changed between its load and its store; the transaction is to be run again.
var errConflict = errors.New("row changed meanwhile")

// querier is what *sql.DB, *sql.Conn and *sql.Tx share.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// database is what *sql.DB and *sql.Conn share.
type database interface {
	querier
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

// tx is one transaction, or one look outside of any, at one moment. All times of its rows are
// compared with now.
type tx struct {
	querier
	*texts
	q      *Queue
	now    int64     // on the clock of the rows
	read   time.Time // on this machine's clock, when now was known
	mended bool
}

// read runs do outside a transaction.
func (q *Queue) read(ctx context.Context, do func(*tx) error) error {
	return q.tidied(ctx, q.healing(ctx, func() error {
		limited, cancel := context.WithTimeout(ctx, transactionTimeout)
		defer cancel()
		return q.connected(limited, func(db database) error {
			t, err := q.begun(limited, db)
			if err != nil {
				return err
			}
			return do(t)
		})
	}))
}

// update runs do in a transaction, again when another transaction came in between.
func (q *Queue) update(ctx context.Context, do func(*tx) error) error {
	for try := 0; ; try++ {
		err := q.healing(ctx, func() error { return q.updateOnce(ctx, do) })
		passing := errors.Is(err, errConflict) || q.passing(err)
		if !passing || try == 20 || ctx.Err() != nil {
			return q.tidied(ctx, err)
		}
		time.Sleep(rand.N(time.Duration(try+1) * 5 * time.Millisecond))
	}
}

func (q *Queue) updateOnce(ctx context.Context, do func(*tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	mended := false
	err := q.connected(ctx, func(db database) error {
		transaction, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer transaction.Rollback()
		t, err := q.begun(ctx, transaction)
		if err != nil {
			return err
		}
		err = do(t)
		mended = t.mended
		if err != nil {
			return err
		}
		return transaction.Commit()
	})
	if err != nil && mended {
		q.mends.reset()
	}
	if errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil {
		return ctx.Err() // by which it was rolled back
	}
	return err
}

// connected runs do with a database whose tables are there.
func (q *Queue) connected(ctx context.Context, do func(database) error) error {
	if q.file != nil {
		return q.file.connected(ctx, q, do)
	}
	if err := q.schema.ready(ctx, q, q.db); err != nil {
		return err
	}
	return do(q.db)
}

// begun looks at the clock.
func (q *Queue) begun(ctx context.Context, db querier) (*tx, error) {
	now := q.clock()
	t := &tx{querier: db, texts: q.texts, q: q, now: now.UnixMilli(), read: now}
	if !q.askClock {
		return t, nil
	}
	err := db.QueryRowContext(ctx, q.dialect.clock).Scan(&t.now)
	t.read = q.clock()
	return t, err
}

// tidied leaves alone what the caller's context did.
func (q *Queue) tidied(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if err = q.dialect.tidy(err); q.file != nil {
		err = noRoom(q.stateDir, err)
	}
	return err
}

// schema remembers that the tables have been seen to be there.
type schema struct {
	mu   sync.Mutex
	seen bool
}

// ready creates or migrates the tables at first use. Tables that were there once have been lost.
func (s *schema) ready(ctx context.Context, q *Queue, db database) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen {
		return nil
	}
	if err := migrate(ctx, db, q.dialect, q.created); err != nil {
		return err
	}
	node, err := identify(ctx, q.stateDir)
	if err != nil {
		return err
	}
	if q.node == "" { // others read it
		q.node = node
	}
	s.seen = true
	return nil
}

func (s *schema) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = false
}

// scanner is what *sql.Row and *sql.Rows share.
type scanner interface{ Scan(...any) error }

// each calls scan, which only scans, for every row.
func (tx *tx) each(ctx context.Context, scan func(scanner) error, query string, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		switch err := scan(rows); {
		case err == nil:
		case ctx.Err() != nil: // which closes the rows
			return ctx.Err()
		default: // a value is not what we have stored
			return fmt.Errorf("%w: %w", errImpossible, err)
		}
	}
	return rows.Err()
}

// one scans a row; without one the error is sql.ErrNoRows.
func (tx *tx) one(ctx context.Context, fields []any, query string, args ...any) (err error) {
	found := false
	err = tx.each(ctx, func(row scanner) error {
		found = true
		return row.Scan(fields...)
	}, query, args...)
	if err == nil && !found {
		err = sql.ErrNoRows
	}
	return err
}

// exactly turns a count of changed rows other than want into errConflict.
func exactly(want int, res sql.Result, err error) error {
	n, err := affected(res, err)
	if err == nil && n != want {
		return fmt.Errorf("%w: %d rows of %d", errConflict, n, want)
	}
	return err
}

func affected(res sql.Result, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return int(n), err
}
