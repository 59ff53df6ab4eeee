package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mirror-shell/internal/sendpack"
)

// Options are the settings of Connections. The zero value of each field stands
// for its default.
type Options struct {
	// ChannelsPerHost is how many commands run on one peer at a time; 4. More
	// wait. jobs_per_peer and one or two for questions is a good number.
	ChannelsPerHost int
	// PushesPerHost is how many of them may be pushes; all but one. Whoever pushes asks
	// the peer something now and then while the push waits (HEAD, mirror-known): with nothing but
	// pushes under way, each would wait for another one to end.
	PushesPerHost int
	// IdleTimeout is how long a connection is kept that nobody uses; 60 s.
	IdleTimeout time.Duration
	// KeepAlive is how long a peer may be silent before it is asked for a sign
	// of life; 15 s. After three times as long the connection is given up.
	KeepAlive time.Duration
	// DialTimeout bounds a new connection with its authentication; 30 s.
	// ConnectTimeout in ssh_config goes first.
	DialTimeout time.Duration
	// ControlDir is where a private directory for ControlMaster's sockets may
	// be made, when its path is short enough; the temporary directory otherwise.
	ControlDir string
	// ConfigFile is used instead of the account's and the system's ssh_config.
	ConfigFile string
}

// Connections is a Transport that keeps its connections. A command is a channel
// on one of them, which costs a millisecond or two where a new connection costs
// a hundred.
//
// How a host is reached is what OpenSSH would do: `ssh -G` is asked. What that
// names is done in this process with x/crypto/ssh, or, where this process
// cannot (decideRoute), by the ssh program with a shared connection of its own.
// In both cases host keys are verified as OpenSSH would.
//
// A connection is dialled by the first who needs it; others wait for the same
// attempt and share its failure. It is closed when it was idle for a while, when
// the peer is silent for too long, and by Close; its commands fail with
// ErrUnreachable then. An Open that meets a connection that has died dials once
// more, and only once.
//
// Its methods may be called from many goroutines.
type Connections struct {
	opt  Options
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // everything that Close has to wait for

	masters atomic.Uint32 // numbers control sockets

	mu      sync.Mutex
	closed  bool
	hosts   map[string]*keptHost
	sockets string // directory of the control sockets, "" before there is one
}

// errClosed is what commands fail with that Close has ended.
var errClosed = errors.New("the connections were closed")

// NewConnections returns a Transport without connections yet. Close must be
// called.
func NewConnections(opt Options) *Connections {
	orDefault(&opt.ChannelsPerHost, 4)
	orDefault(&opt.PushesPerHost, max(1, opt.ChannelsPerHost-1))
	orDefault(&opt.IdleTimeout, 60*time.Second)
	orDefault(&opt.KeepAlive, 15*time.Second)
	orDefault(&opt.DialTimeout, 30*time.Second)
	c := &Connections{opt: opt, hosts: map[string]*keptHost{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

func orDefault[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Open implements Transport. It returns when the peer has taken the command.
func (c *Connections) Open(ctx context.Context, host, command string, stderr io.Writer) (Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := c.host(host)
	if err != nil {
		return nil, err
	}
	if stderr == nil {
		stderr = io.Discard
	}
	return h.open(ctx, command, stderr)
}

// Describe tells in one line how a host is reached.
func (c *Connections) Describe(ctx context.Context, host string) (string, error) {
	settings, err := c.resolve(ctx, host)
	if err != nil {
		return "", err
	}
	way := decideRoute(settings)
	if !way.openSSH {
		keys := findCredentials(ctx, settings)
		defer keys.close()
		if way = keys.route(); !way.openSSH {
			way = readKnownHosts(host, settings).fallback
		}
	}
	to := fmt.Sprintf("%s@%s", settings.one("user"), settings.address())
	if way.openSSH {
		return to + " with the ssh program and a shared connection of its own (" + way.reason + ")", nil
	}
	return to + " in this process", nil
}

// Close ends all commands and connections and waits until they are gone.
func (c *Connections) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.work.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sockets != "" {
		_ = os.RemoveAll(c.sockets) // masters remove their own; what is left does no harm
		c.sockets = ""
	}
}

// spawn runs f in a goroutine that Close waits for, unless Close was called.
func (c *Connections) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(f)
	return true
}

func (c *Connections) host(name string) (*keptHost, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, errClosed)
	}
	h := c.hosts[name]
	if h == nil {
		h = &keptHost{Connections: c, name: name, changed: make(chan struct{}), pushes: make(chan struct{}, c.opt.PushesPerHost)}
		c.hosts[name] = h
	}
	return h, nil
}

// keptHost is one host, with the connections to it.
type keptHost struct {
	*Connections
	name string

	pushes chan struct{} // has one for each push under way

	mu      sync.Mutex
	lanes   []*lane       // that take new commands, oldest first
	dial    *dialing      // the attempt under way, nil without
	changed chan struct{} // closed, and replaced, when a waiting Open should look again
	checked time.Time     // when the configuration was last looked at
	stamp   string        // what it looked like when it was last used
}

// lane is a connection and how much of it is in use. Its host's mu guards it.
type lane struct {
	carrier
	host    *keptHost
	inUse   int  // slots that are taken
	stuck   int  // of those, channels that were given up and that the peer does not close
	open    int  // channels that the peer has granted
	peak    int  // the most that open was
	limit   int  // of inUse
	refused int  // how often in a row the peer has refused what it has granted before
	full    bool // there is no more room until a command ends
	retired bool // takes no new commands
	idle    *time.Timer
}

// carrier is a connection: in this process (keptConn) or with the ssh program
// (master).
type carrier interface {
	// start runs a command. It returns errRefused when the peer has no room
	// for another one, ctx's error when that has ended, and any other error
	// when the connection is of no use any more. In every case the slot is
	// given back: after an error, or when the command's room is free again.
	start(ctx context.Context, command string, stderr io.Writer, slot *slot) (Stream, error)
	// alive reports whether the connection may still be used.
	alive() bool
	// shut ends the connection. The host's mu is held.
	shut(why error)
}

// errRefused: the peer does not let another command start on this connection
// (sshd's MaxSessions).
var errRefused = errors.New("the peer refuses another session")

// dialing is an attempt that several may wait for.
type dialing struct {
	done chan struct{}
	err  error
}

// maxTries bounds what cannot happen for long: a lane that others fill up, or
// a limit that is learned.
const maxTries = 100

// open starts a command, a push when its turn has come.
func (h *keptHost) open(ctx context.Context, command string, stderr io.Writer) (Stream, error) {
	verb, _, _ := strings.Cut(command, " ")
	if verb != "git-receive-pack" && verb != sendpack.QuickVerb {
		return h.start(ctx, command, stderr)
	}
	select {
	case h.pushes <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done := sync.OnceFunc(func() { <-h.pushes })
	stream, err := h.start(ctx, command, stderr)
	if err != nil {
		done()
		return nil, err
	}
	return &pushStream{stream, done}, nil
}

// pushStream makes room for the next push when it has ended.
type pushStream struct {
	Stream
	done func()
}

func (p *pushStream) Wait() error {
	defer p.done()
	return p.Stream.Wait()
}

// start starts a command on a connection that is there or on a new one.
func (h *keptHost) start(ctx context.Context, command string, stderr io.Writer) (Stream, error) {
	h.notice()
	fresh := false // only a new connection will do
	for range maxTries {
		s, err := h.slot(ctx, fresh)
		if err != nil {
			return nil, err
		}
		stream, err := s.lane.start(ctx, command, stderr, s)
		switch {
		case err == nil:
			return stream, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errRefused):
			if s.last {
				return nil, fmt.Errorf("%w: %s lets us in and refuses every session: look at MaxSessions and at this account there", ErrUnreachable, h.name)
			}
			if s.early {
				wait(ctx, refusedPause)
			}
		case !s.kept:
			return nil, unreachable(err)
		default:
			// A kept connection has died, and so, perhaps, have the others.
			h.drop(err)
			fresh = true
		}
	}
	return nil, fmt.Errorf("%w: no session on %s in %d attempts", ErrUnreachable, h.name, maxTries)
}

// sshd counts a session until it has tidied up after its end, which may be
// after it has read our next request: one that comes at once can be refused
// although there is room.
const (
	refusedPause = 10 * time.Millisecond
	maxRefused   = 5
)

// wait waits for d or ctx's end.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// unreachable makes err wrap ErrUnreachable, once.
func unreachable(err error) error {
	if errors.Is(err, ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// slot is one command's share of a lane. The host's mu guards it.
type slot struct {
	lane  *lane
	kept  bool // the lane was there before the command
	last  bool // the peer refused it although it was the only one ever
	early bool // the peer refused it, and may not for long
	open  bool
	freed bool
	stuck bool
}

// slot waits for room on a connection, and dials when there is none and may be
// one more. With fresh, a connection that is there already will not do.
func (h *keptHost) slot(ctx context.Context, fresh bool) (*slot, error) {
	dialled := false
	h.mu.Lock()
	for {
		total := 0
		for _, l := range slices.Clone(h.lanes) {
			if !l.alive() {
				l.retire(nil)
				continue
			}
			total += l.inUse
			if (!fresh || dialled) && l.inUse < l.limit && !l.full && h.room() {
				s := l.take(!dialled)
				h.mu.Unlock()
				return s, nil
			}
		}
		wait, attempt := h.changed, (*dialing)(nil)
		if total < h.opt.ChannelsPerHost {
			if attempt = h.dialOnce(); attempt == nil {
				h.mu.Unlock()
				return nil, fmt.Errorf("%w: %w", ErrUnreachable, errClosed)
			}
			wait = attempt.done
		}
		h.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-h.ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, errClosed)
		}
		if attempt != nil {
			if attempt.err != nil {
				return nil, attempt.err
			}
			dialled = true
		}
		h.mu.Lock()
	}
}

// room reports whether the host may have one more command.
func (h *keptHost) room() bool {
	total := 0
	for _, l := range h.lanes {
		total += l.inUse
	}
	return total < h.opt.ChannelsPerHost
}

// dialOnce joins the attempt under way or starts one, nil after Close.
func (h *keptHost) dialOnce() *dialing {
	if h.dial != nil {
		return h.dial
	}
	d := &dialing{done: make(chan struct{})}
	if !h.spawn(func() { h.connect(d) }) {
		return nil
	}
	h.dial = d
	return d
}

// connect dials and adds a lane.
func (h *keptHost) connect(d *dialing) {
	stamp := h.configStamp() // before the files are read
	made, err := h.reach(h.ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dial = nil
	if err != nil {
		d.err = unreachable(err)
	} else {
		h.stamp, h.checked = stamp, time.Now()
		l := &lane{carrier: made, host: h, limit: h.opt.ChannelsPerHost}
		h.lanes = append(h.lanes, l)
		l.settle()
	}
	close(d.done)
	h.wake()
}

// checkEvery is how often the configuration files are looked at.
const checkEvery = time.Second

// notice lets connections run out that were made by settings that may have
// changed.
func (h *keptHost) notice() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lanes) == 0 || time.Since(h.checked) < checkEvery {
		return
	}
	h.checked = time.Now()
	if h.configStamp() != h.stamp {
		for _, l := range slices.Clone(h.lanes) {
			l.retire(nil)
		}
	}
}

// drop lets go of connections that have died.
func (h *keptHost) drop(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range slices.Clone(h.lanes) {
		if !l.alive() {
			l.retire(why)
		}
	}
}

// wake lets every Open that waits look again. mu is held.
func (h *keptHost) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}
