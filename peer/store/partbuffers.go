package store

import (
	"sync"
	"time"
)

// buffersIdle is how long the memory for parts is kept after its last use.
const buffersIdle = 10 * time.Second

// partBuffers keeps the memory for parts between uploads: as garbage it would be several times
// what is in use. There are never more buffers than are in use at once, which the store's
// memory limits, and none once no upload has needed one for buffersIdle. (A sync.Pool
// forgets with every collection, in the middle of an upload too.)
type partBuffers struct {
	mu    sync.Mutex
	idle  []*[partSize]byte
	timer *time.Timer
}

func (p *partBuffers) get() *[partSize]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return new([partSize]byte)
	}
	b := p.idle[last]
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return b
}

func (p *partBuffers) put(b *[partSize]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, b)
	if p.timer == nil {
		p.timer = time.AfterFunc(buffersIdle, p.drop)
		return
	}
	p.timer.Reset(buffersIdle)
}

func (p *partBuffers) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = nil
}
