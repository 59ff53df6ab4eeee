package storetest

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Fault is something that goes wrong with a request to an S3 server. The zero values of
// Match and Times are every request, once. Exactly one of the other fields says what happens.
type Fault struct {
	Match func(*http.Request) bool // which requests; nil: all
	Times int                      // how many of them, after Skip; 0: one; negative: all
	Skip  int                      // let so many pass first

	Status     int // answer this HTTP status without asking the server, Code as S3's code in the body
	Code       string
	CutRequest int64  // take so many bytes of the request's body, then close the connection; the server never hears of it
	CutAnswer  int64  // pass so many bytes of the answer's body on, then close the connection
	Lose       bool   // have the server do it, then close the connection without an answer
	Hang       bool   // never answer
	Flip       int64  // change the answer's byte at this offset, from 1
	Before     func() // call this, then go on as if nothing were wrong
}

// Proxy stands between clients and an S3 server, and does to requests what it is told.
type Proxy struct {
	Endpoint string // http://127.0.0.1:PORT, in place of the server's

	target *url.URL
	mu     sync.Mutex
	faults []*Fault
	seen   []string
}

// Faulty starts a proxy in front of a server, which ends with the test. The address
// is all that differs for a client.
func Faulty(t testing.TB, server *Server) *Proxy {
	t.Helper()
	target, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target}
	ctx, cancel := context.WithCancel(context.Background())
	front := httptest.NewUnstartedServer(p)
	front.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	front.Start()
	p.Endpoint = front.URL
	t.Cleanup(func() {
		cancel() // what hangs
		front.Close()
	})
	return p
}

// Inject adds faults. A request gets the first that fits and is not used up.
func (p *Proxy) Inject(faults ...Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range faults {
		if f.Times == 0 {
			f.Times = 1
		}
		p.faults = append(p.faults, &f)
	}
}

// Seen returns the requests since the last call, as "METHOD /path?query".
func (p *Proxy) Seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

// Reset forgets all faults, and what was seen.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults, p.seen = nil, nil
}

// Method matches requests by their method and by a part of their path and query.
func Method(method, part string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.RequestURI(), part) }
}

func (p *Proxy) next(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, r.Method+" "+r.URL.RequestURI())
	for _, f := range p.faults {
		if f.Times == 0 || f.Match != nil && !f.Match(r) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		f.Times--
		return *f
	}
	return Fault{}
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.next(r)
	switch {
	case f.Status != 0:
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.Status)
		if r.Method != http.MethodHead && f.Code != "" {
			io.WriteString(w, "<?xml version=\"1.0\"?><Error><Code>"+f.Code+"</Code><Message>injected</Message></Error>")
		}
		return
	case f.CutRequest > 0:
		io.CopyN(io.Discard, r.Body, f.CutRequest)
		panic(http.ErrAbortHandler)
	case f.Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case f.Before != nil:
		f.Before()
	}
	answer, err := p.forward(r)
	if err != nil || f.Lose {
		if err == nil {
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
		panic(http.ErrAbortHandler)
	}
	defer answer.Body.Close()
	pass(w, answer, f)
}

// forward sends the request on as it is: its signature covers the Host that the client
// sees.
func (p *Proxy) forward(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = p.target.Scheme, p.target.Host
	out.Header.Del("Expect")
	if r.ContentLength == 0 {
		out.Body = nil
	}
	return plain.RoundTrip(out)
}

// plain keeps no connections: the server behind ends with its test.
var plain = &http.Transport{DisableCompression: true, DisableKeepAlives: true}

func pass(w http.ResponseWriter, answer *http.Response, f Fault) {
	for name, values := range answer.Header {
		w.Header()[name] = values
	}
	if answer.ContentLength >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(answer.ContentLength, 10))
	}
	w.WriteHeader(answer.StatusCode)
	body := io.Reader(answer.Body)
	if f.Flip > 0 {
		body = &flip{r: body, at: f.Flip - 1}
	}
	if f.CutAnswer > 0 {
		io.CopyN(w, body, f.CutAnswer)
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// flip changes one byte of what it reads.
type flip struct {
	r  io.Reader
	at int64
}

func (f *flip) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 0x20
	}
	f.at -= int64(n)
	return n, err
}
