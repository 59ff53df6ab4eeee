package queue

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"
)

// Bounds of the pool of one process. Several nodes and their hooks share the server's hundred connections.
const (
	maxConnections = 4
	idleConnection = time.Minute
	oldConnection  = 30 * time.Minute // a server that has moved is found again
)

// silence is after how long without an answer from the server's machine a connection is given up.
const silence = 20 * time.Second

// postgresDefaults hold where the url does not say otherwise. A transaction of ours takes milliseconds; one that
// a stopped process left open is ended by the server, because the rows it has locked stop all nodes.
var postgresDefaults = map[string]string{
	"application_name":                    "mirror-shell",
	"statement_timeout":                   "30s",
	"lock_timeout":                        "10s",
	"idle_in_transaction_session_timeout": "20s",
}

// openPostgres prepares connections and makes none. Its errors do not show the password.
func openPostgres(address string) (*sql.DB, *dialect, error) {
	config, err := parsePostgres(address)
	if err != nil {
		return nil, nil, err
	}
	for name, value := range postgresDefaults {
		if _, set := config.RuntimeParams[name]; !set {
			config.RuntimeParams[name] = value
		}
	}
	if config.ConnectTimeout <= 0 || config.ConnectTimeout > silence {
		config.ConnectTimeout = silence / 2
	}
	config.DialFunc = dialer(config.ConnectTimeout).DialContext
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(maxConnections)
	db.SetMaxIdleConns(maxConnections)
	db.SetConnMaxIdleTime(idleConnection)
	db.SetConnMaxLifetime(oldConnection)
	return db, postgresDialect(config.Password), nil
}

func parsePostgres(address string) (*pgx.ConnConfig, error) {
	u, err := url.Parse(address)
	if err != nil { // its text is the address, with the password
		return nil, errors.New("[queue] url is not a url: write postgres://USER@HOST/DATABASE, " +
			"percent-encode what is special in it, and best keep the password in ~/.pgpass")
	}
	if u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, fmt.Errorf("[queue] url with %q: this kind of database is %w: write postgres://USER@HOST/DATABASE, "+
			"or leave url empty to use SQLite in state_dir", u.Scheme, ErrUnsupported)
	}
	config, err := pgx.ParseConfig(address)
	if err != nil {
		password, _ := u.User.Password()
		text := concealed(err.Error(), password, u.Query().Get("password"), address)
		return nil, fmt.Errorf("[queue] url: %w", &shownError{text: oneLine(text), err: err})
	}
	return config, nil
}

// dialer makes connections that notice when the machine at the other end is gone.
func dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 8, Count: 4},
		Control: func(network, _ string, c syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			var err error
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
}

func postgresDialect(password string) *dialect {
	return &dialect{
		shared:   true,
		nameType: `TEXT COLLATE "C"`,
		mark:     func(n int) string { return fmt.Sprintf("$%d", n) },
		listed:   func(lock string) string { return looked("*", lock) + " AS j" },
		among:    "ctid = ANY(ARRAY(SELECT j.at FROM " + looked("ctid AS at", "") + " AS j))",
		lists: func(keys []Key) (any, any) {
			repositories, peers := make([]string, len(keys)), make([]string, len(keys))
			for i, k := range keys {
				repositories[i], peers[i] = k.Repository, k.Peer
			}
			return repositories, peers
		},
		lock:    " FOR UPDATE",
		skip:    " FOR UPDATE SKIP LOCKED",
		clock:   `SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)`,
		alone:   `SELECT pg_advisory_xact_lock(7884630137165217)`, // any number that is always the same
		passing: isPassing,
		tidy:    func(err error) error { return shown(err, password) },
	}
}

// looked is a FROM: what of the jobs of server $1 in the lists $2 and $3. OFFSET 0 has each looked up in the
// index: a join is planned badly, up to a hundred times slower, as long as the server has no statistics of the table.
func looked(what, lock string) string {
	return `unnest(CAST($2 AS TEXT[]), CAST($3 AS TEXT[])) AS v (repository, peer)
		CROSS JOIN LATERAL (SELECT ` + what + ` FROM jobs
		WHERE server = $1 AND repository = v.repository AND peer = v.peer OFFSET 0` + lock + `)`
}

// isPassing recognises serialization_failure and deadlock_detected. We hardly cause them, but
// the server may be set to a stricter isolation than its default.
func isPassing(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01")
}

// isUnavailable reports that there was no server to answer: no connection, a broken one, or one that starts or stops.
func isUnavailable(err error) bool {
	var connect *pgconn.ConnectError
	var answer *pgconn.PgError
	var network net.Error
	switch {
	case errors.As(err, &answer): // class 57P: operator intervention; 08: connection; 53300: too many connections
		return strings.HasPrefix(answer.Code, "57P") || strings.HasPrefix(answer.Code, "08") || answer.Code == "53300"
	case errors.As(err, &connect), errors.As(err, &network), pgconn.Timeout(err):
		return true
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// shownError is an error whose text is fit for people and logs.
type shownError struct {
	text        string
	err         error
	unavailable bool
}

func (e *shownError) Error() string { return e.text }

func (e *shownError) Unwrap() []error {
	if e.unavailable {
		return []error{ErrUnavailable, e.err}
	}
	return []error{e.err}
}

// shown makes an error one line without the password. The driver does not write it into its errors; this
// holds whatever it, or a server, may come to write.
func shown(err error, password string) error {
	e := &shownError{text: oneLine(concealed(err.Error(), password)), err: err, unavailable: isUnavailable(err)}
	if e.unavailable {
		e.text = fmt.Sprintf("%v: %s", ErrUnavailable, e.text)
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) && (answer.Code == "42501" || answer.Code == "3F000") { // no rights, no schema
		e.text += ": the queue needs a database or a schema of its own, whose owner it is"
	}
	return e
}

// concealed replaces the secrets in a text.
func concealed(text string, secrets ...string) string {
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret)} {
			text = strings.ReplaceAll(text, form, "xxxxx")
		}
	}
	return text
}
