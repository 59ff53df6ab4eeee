package worker

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// progress shows how far a long command is: one bar for each of its stages when
// standard error is a terminal, and nothing elsewhere. As a writer it prints lines above
// the bars, or just prints them.
type progress struct {
	stderr io.Writer
	bars   *mpb.Progress // nil: nothing is shown
	stage  *stage
	bytes  *stage // beside it
	wrote  atomic.Bool
}

// stage is one bar. Its methods may be called by any number of goroutines; those of nil do nothing.
type stage struct {
	bar   *mpb.Bar
	mu    sync.Mutex
	total int64
}

// newProgress shows bars on stderr, if that is a terminal and unless quiet.
// Close must be called before anything is written past it.
func newProgress(stderr io.Writer, quiet bool) *progress {
	p := &progress{stderr: stderr}
	if file, ok := stderr.(*os.File); ok && !quiet && isTerminal(file) {
		p.bars = mpb.New(sizedFor(file)...)
	}
	return p
}

// sizedFor are the options of bars on a terminal. One without a size (a serial console, a session that was started by a program)
// has no room for a bar, says mpb; so for that it must not know that it is a terminal.
func sizedFor(file *os.File) []mpb.ContainerOption {
	if size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		return []mpb.ContainerOption{mpb.WithOutput(file), mpb.WithWidth(barWidth)}
	}
	return []mpb.ContainerOption{mpb.WithOutput(struct{ io.Writer }{file}), mpb.WithWidth(defaultColumns), mpb.WithAutoRefresh()}
}

// Write prints whole lines.
func (p *progress) Write(text []byte) (int, error) {
	if p.bars != nil {
		if n, err := p.bars.Write(text); !errors.Is(err, mpb.ErrDone) {
			p.wrote.Store(true)
			return n, err
		}
	}
	return p.stderr.Write(text)
}

const (
	barWidth       = 64
	defaultColumns = 80 // of a terminal that does not say
)

// isTerminal reports whether bars can be drawn on a file.
func isTerminal(file *os.File) bool {
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

// Stage begins a stage of so many steps, and ends the one before as it is. A stage of no
// steps is not shown.
func (p *progress) Stage(name string, steps int) *stage {
	p.end()
	p.stage = &stage{}
	if p.bars != nil && steps > 0 {
		p.stage.bar = p.bars.New(int64(steps), mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
			mpb.PrependDecorators(decor.Name(name, decor.WC{C: decor.DindentRight | decor.DextraSpace})),
			mpb.AppendDecorators(decor.CountersNoUnit(" %d/%d"), decor.Elapsed(decor.ET_STYLE_GO, decor.WC{W: 6})))
	}
	return p.stage
}

// Bytes adds to the stage that has begun a count of bytes, which ends with it.
func (p *progress) Bytes(name string) *stage {
	p.bytes = &stage{}
	if p.bars != nil && p.stage != nil && p.stage.bar != nil {
		p.bytes.bar = p.bars.New(0, mpb.NopStyle(),
			mpb.PrependDecorators(decor.Name(name, decor.WC{C: decor.DindentRight | decor.DextraSpace}), decor.Any(func(s decor.Statistics) string {
				if s.Total <= 0 {
					return bytesText(s.Current)
				}
				return bytesText(s.Current) + " of " + bytesText(s.Total)
			})))
	}
	return p.bytes
}

// Done counts steps, or bytes, as done.
func (s *stage) Done(steps int64) {
	if s != nil && s.bar != nil {
		s.bar.IncrInt64(steps)
	}
}

// Expect adds to the bytes that there will be.
func (s *stage) Expect(n int64) {
	if s == nil || s.bar == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total += n
	s.bar.SetTotal(s.total, false)
}

func (p *progress) end() {
	for _, s := range []*stage{p.stage, p.bytes} {
		if s != nil && s.bar != nil {
			s.bar.Abort(false) // does nothing to one that is complete
			s.bar.Wait()
		}
	}
}

// Close ends the last stage and leaves the terminal to others. It may be called again.
func (p *progress) Close() {
	p.end()
	if p.bars == nil {
		return
	}
	if p.wrote.Swap(false) {
		// Lines are held back until bars are drawn, and lost when none is drawn any more. One that is gone before
		// anybody sees it has them drawn.
		last := p.bars.New(1, mpb.NopStyle())
		last.Abort(true)
		last.Wait()
	}
	p.bars.Wait()
}
