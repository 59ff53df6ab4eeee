package snapshot

import "hash"

// hashAside is from which size on content is hashed beside what else is done with it: a pack has two hashes,
// which in a row took longer than writing it.
const hashAside = 4 << 20

// asideHash is a hash whose Write returns at once. It has a goroutine from its first Write to Close,
// and asideBuffers × asideSize bytes of memory.
type asideHash struct {
	inner hash.Hash
	free  chan []byte   // buffers to be filled
	full  chan []byte   // buffers to be hashed
	idle  chan struct{} // answers to an empty buffer: all before it has been hashed
	open  bool
}

const (
	asideBuffers = 4
	asideSize    = 64 << 10
)

// aside returns h itself for little content.
func aside(h hash.Hash, size int64) hash.Hash {
	if size < hashAside {
		return h
	}
	return &asideHash{inner: h}
}

func (h *asideHash) start() {
	h.free, h.full, h.idle = make(chan []byte, asideBuffers), make(chan []byte, asideBuffers), make(chan struct{})
	for range asideBuffers {
		h.free <- make([]byte, 0, asideSize)
	}
	h.open = true
	go func(free chan<- []byte, full <-chan []byte, idle chan<- struct{}) {
		for b := range full {
			if len(b) == 0 {
				idle <- struct{}{}
				continue
			}
			h.inner.Write(b) // never fails
			free <- b[:0]
		}
		close(idle)
	}(h.free, h.full, h.idle)
}

// Write takes a copy of b.
func (h *asideHash) Write(b []byte) (int, error) {
	if !h.open {
		h.start()
	}
	n := len(b)
	for len(b) > 0 {
		buf := <-h.free
		some := min(len(b), cap(buf))
		h.full <- append(buf, b[:some]...)
		b = b[some:]
	}
	return n, nil
}

// wait returns when all that was written has been hashed.
func (h *asideHash) wait() {
	if h.open {
		h.full <- nil
		<-h.idle
	}
}

func (h *asideHash) Sum(b []byte) []byte {
	h.wait()
	return h.inner.Sum(b)
}

func (h *asideHash) Reset() {
	h.wait()
	h.inner.Reset()
}

func (h *asideHash) Size() int      { return h.inner.Size() }
func (h *asideHash) BlockSize() int { return h.inner.BlockSize() }

// Close ends the goroutine, after it has come to the end of its work.
func (h *asideHash) Close() error {
	if h.open {
		close(h.full)
		<-h.idle
		h.open = false
	}
	return nil
}

// closeHash ends a hash of aside.
func closeHash(h any) error {
	if h, ok := h.(*asideHash); ok {
		return h.Close()
	}
	return nil
}
