package peer

import (
	"slices"
	"time"
)

// take takes a slot. The host's mu is held.
func (l *lane) take(kept bool) *slot {
	l.inUse++
	if l.idle != nil {
		l.idle.Stop()
	}
	return &slot{lane: l, kept: kept && l.peak > 0}
}

// granted notes that the peer has opened the channel.
func (s *slot) granted() {
	s.lane.host.mu.Lock()
	defer s.lane.host.mu.Unlock()
	s.open = true
	s.lane.open++
	s.lane.peak = max(s.lane.peak, s.lane.open)
	s.lane.refused = 0
}

// free gives the slot back.
func (s *slot) free() { s.give(false) }

// refuse gives the slot back that the peer did not grant, and learns from it.
func (s *slot) refuse() { s.give(true) }

func (s *slot) give(refused bool) {
	l := s.lane
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	if s.freed {
		return
	}
	s.freed = true
	l.inUse--
	if s.stuck {
		l.stuck--
	}
	if s.open {
		l.open--
		l.full = false
	}
	if refused {
		s.learn()
	}
	l.settle()
	l.host.wake()
}

// learn draws conclusions from a refusal. The host's mu is held.
func (s *slot) learn() {
	l := s.lane
	l.limit = min(l.limit, max(1, l.peak, l.inUse))
	if s.early = l.open < l.peak && l.refused < maxRefused; s.early {
		l.refused++
		return
	}
	l.refused, l.full = 0, true
	if l.inUse == 0 {
		// Commands that were given up may still run over there. A new connection
		// has room, unless there never was any.
		s.last = l.peak == 0
		l.retire(nil)
	}
}

// stick notes that a slot does not come back although its command was given up:
// the peer waits for a program that does not read. Others must not wait for
// that, so the connection ends with the commands that it still has.
func (s *slot) stick() {
	s.lane.host.mu.Lock()
	defer s.lane.host.mu.Unlock()
	if !s.freed && !s.stuck {
		s.stuck = true
		s.lane.stuck++
		s.lane.retire(nil)
	}
}

// retire takes the lane out of service; its commands go on, unless why says
// that they cannot. The host's mu is held.
func (l *lane) retire(why error) {
	h := l.host
	if !l.retired {
		l.retired = true
		h.lanes = slices.DeleteFunc(h.lanes, func(other *lane) bool { return other == l })
		h.wake()
	}
	if why != nil {
		l.shut(why)
		return
	}
	l.settle()
}

// settle does what is due when the number of commands has changed: a retired
// lane without any is closed at once, another one after a while. The host's mu
// is held.
func (l *lane) settle() {
	switch {
	case l.retired && l.inUse <= l.stuck:
		if l.idle != nil {
			l.idle.Stop()
		}
		l.shut(nil)
	case l.inUse > 0:
	case l.idle == nil:
		l.idle = time.AfterFunc(l.host.opt.IdleTimeout, l.expire)
	default:
		l.idle.Reset(l.host.opt.IdleTimeout)
	}
}

// expire closes a lane that was idle for long enough.
func (l *lane) expire() {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	if l.inUse == 0 {
		l.retire(nil)
	}
}
