package queue

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

func TestPostgresSettings(t *testing.T) { onServer(t, testPostgresSettings) }

func testPostgresSettings(t *testing.T) {
	q := open(t, t.TempDir(), func(o *Options) { o.URL += "&statement_timeout=5s" })
	for name, want := range map[string]string{"statement_timeout": "5s", "lock_timeout": "10s",
		"idle_in_transaction_session_timeout": "20s", "application_name": "mirror-shell", "transaction_isolation": "read committed"} {
		var got string
		if err := q.db.QueryRow("SHOW " + name).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	if n := q.db.Stats().MaxOpenConnections; n != maxConnections {
		t.Errorf("%d connections", n)
	}
	if _, err := os.Stat(databasePath(q.stateDir)); err == nil {
		t.Error("there is a SQLite file too")
	}
}

// No password in anything that is shown, whatever goes wrong.
func TestNoPasswordIsShown(t *testing.T) { onServer(t, testNoPasswordIsShown) }

func testNoPasswordIsShown(t *testing.T) {
	s := needServer(t)
	const secret = "hunter2%&pass"
	closed, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	escaped := url.QueryEscape(secret)
	for name, c := range map[string]struct {
		url         string
		unavailable bool
	}{
		"wrong password":   {s.tcpURL(secret), false},
		"no server":        {fmt.Sprintf("postgres://mirror:%s@127.0.0.1:%d/mirror", url.PathEscape(secret), closed), true},
		"no server, query": {fmt.Sprintf("postgresql://127.0.0.1:%d/mirror?user=mirror&password=%s", closed, escaped), true},
		"no database":      {strings.TrimSuffix(s.tcpURL(serverPassword), "postgres") + "nowhere?application_name=x", false},
		"not a url":        {"postgres://mirror:" + secret + "@host:port/mirror", false},
		"bad option":       {fmt.Sprintf("postgres://mirror:%s@127.0.0.1/mirror?sslmode=maybe", url.PathEscape(secret)), false},
		"other kind":       {"mysql://mirror:" + url.PathEscape(secret) + "@host/mirror", false},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{StateDir: t.TempDir(), Server: "frodo", URL: c.url}
			_, err := Open(t.Context(), o)
			if err == nil || errors.Is(err, ErrUnavailable) != c.unavailable {
				t.Fatalf("got %v", err)
			}
			text := err.Error()
			o.Patient = true
			if q, err := Open(t.Context(), o); err == nil {
				defer q.Close()
				b := newNode(t, q, succeed)
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if err := b.Serve(ctx); err != nil {
					text += err.Error()
				}
				text += b.log.String()
			}
			for _, form := range []string{secret, escaped, url.PathEscape(secret), serverPassword, url.PathEscape(serverPassword), "hunter2"} {
				if strings.Contains(text, form) {
					t.Errorf("shown: %s", text)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %s", err)
			}
			t.Log(err)
		})
	}
	q := open(t, t.TempDir(), func(o *Options) { o.URL = s.tcpURL(serverPassword) + "?search_path=" + searchPath(t, o.URL) })
	enqueue(t, q, samKey)
}

func searchPath(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("search_path")
}

// An account that may not create tables is told what is missing.
func TestMissingRights(t *testing.T) { onServer(t, testMissingRights) }

func testMissingRights(t *testing.T) {
	s := needServer(t)
	guest := fmt.Sprint("guest", time.Now().UnixNano())
	s.exec(t, "CREATE ROLE "+guest+" LOGIN")
	dir := t.TempDir()
	address := strings.Replace(databaseURL(t, dir), "user=postgres", "user="+guest, 1)
	_, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo", URL: address})
	if err == nil || !strings.Contains(err.Error(), "of its own") || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
