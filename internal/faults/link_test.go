package faults

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"
)

// echo is a server that sends back what it gets, behind a link.
func echo(t *testing.T) *link {
	t.Helper()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	l, err := newLink("a", "b", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func dial(t *testing.T, l *link) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(l.port()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends n bytes and returns how many come back within a second.
func exchange(t *testing.T, conn net.Conn, n int) (got int, err error) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(time.Second))
	go conn.Write(make([]byte, n))
	return io.ReadFull(conn, make([]byte, n))
}

func TestLink(t *testing.T) {
	l := echo(t)
	conn := dial(t, l)
	if n, err := exchange(t, conn, 10_000); err != nil {
		t.Fatal(n, err)
	}
	l.set(linkStalls)
	if n, err := exchange(t, conn, 10); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("a link that stalls lets bytes through", n, err)
	}
	l.set(linkPasses) // the ten arrive late
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
		t.Fatal("what was held back has not arrived:", err)
	}
	if l.cut(0) != 1 {
		t.Error("not one connection")
	}
	if _, err := exchange(t, conn, 10); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("not cut:", err)
	}
	l.set(linkRefuses)
	if _, err := exchange(t, dial(t, l), 10); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("not refused:", err)
	}
	l.set(linkHangs)
	hung := dial(t, l)
	if _, err := exchange(t, hung, 10); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("does not hang:", err)
	}
	l.set(linkPasses)
	if _, err := exchange(t, hung, 10); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection that hung lives again:", err)
	}
	if n, err := exchange(t, dial(t, l), 10); err != nil {
		t.Error(n, err)
	}
}

func TestLinkCutAfter(t *testing.T) {
	for _, after := range []int64{1, 100, 4096, 5000, 20_000} {
		l := echo(t)
		conn := dial(t, l)
		l.cut(after)
		n, err := exchange(t, conn, 50_000)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || int64(n) > after || l.armed() {
			t.Errorf("cut after %d: %d bytes came back, %v", after, n, err)
		}
		if n, err := exchange(t, dial(t, l), 10); err != nil {
			t.Errorf("cut after %d: the next connection: %d, %v", after, n, err)
		}
	}
}
