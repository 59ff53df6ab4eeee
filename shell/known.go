package shell

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/rescue"
)

// What a master asks its slave about the commits that only the slave has.
//
// mirror-known reads lines OID SP REF LF until the end of input, and answers each,
// in order, with
//
//	received LF    the slave knows that the master set this ref to this value
//	foreign LF     it does not: a mirror push over it makes a rescued ref of it, for
//	               which our hooks have to be there; without them there is no answer
//
// and at the end END SP COUNT LF. Nothing is answered before all has been read, so
// that a master may write it all before it reads. Without END the answer is not one.
//
// mirror-rescued answers with one JSON array of rescue.Entry.

// The bounds of a question: more refs than any repository has, and the longest name that
// git's protocol carries.
const (
	maxKnownLines = 1 << 20
	maxKnownLine  = 1 << 16
)

// tellKnown answers mirror-known. A record that is lost or damaged knows nothing,
// which makes the master careful.
func (s *Session) tellKnown(ctx context.Context, repo git.Repo) error {
	log, err := refset.Open(refset.Received(repo.Dir))
	var corrupt *refset.CorruptError
	if errors.As(err, &corrupt) {
		s.Log.Error("the record of what the master has set is damaged, and counts as empty", "error", err)
		log, err = refset.Open("/dev/null")
	}
	if err != nil {
		return fmt.Errorf("%s: mirror-known: %w", s.Server.Hostname, err)
	}
	defer log.Close()
	answer, err := answerKnown(s.Stdin, log.Ours)
	if err == nil && s.HooksInstalled != nil && bytes.Contains(answer, []byte("foreign\n")) {
		var installed bool
		if installed, err = s.HooksInstalled(ctx, repo); err == nil && !installed {
			err = errors.New("our hooks are not in that repository, so nothing would be kept: run mirror-shell install-hooks there")
		}
	}
	if err != nil {
		return fmt.Errorf("%s: mirror-known: %w", s.Server.Hostname, err)
	}
	_, err = s.Stdout.Write(answer)
	return err
}

// answerKnown reads a whole question and makes its answer.
func answerKnown(in io.Reader, ours func(ref, oid string) bool) ([]byte, error) {
	var out bytes.Buffer
	r := bufio.NewReaderSize(in, maxKnownLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		switch {
		case err == io.EOF && len(line) == 0:
			fmt.Fprintf(&out, "END %d\n", n-1)
			return out.Bytes(), nil
		case err == io.EOF || errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("line %d is cut off, or longer than %d bytes", n, maxKnownLine)
		case err != nil:
			return nil, err
		case n > maxKnownLines:
			return nil, fmt.Errorf("more than %d lines", maxKnownLines)
		}
		oid, ref, ok := strings.Cut(string(line[:len(line)-1]), " ")
		if !ok || (len(oid) != 40 && len(oid) != 64) || strings.Trim(oid, "0123456789abcdef") != "" || !strings.HasPrefix(ref, "refs/") {
			return nil, fmt.Errorf("line %d, %.120q, is not OID REF", n, line)
		}
		if ours(ref, oid) {
			out.WriteString("received\n")
		} else {
			out.WriteString("foreign\n")
		}
	}
}

// tellRescued answers mirror-rescued. A rescued ref that cannot be read is named in
// the log here, and does not hide the others.
func (s *Session) tellRescued(ctx context.Context, repo git.Repo) error {
	entries, err := rescue.List(ctx, repo)
	var broken *git.BrokenRefs
	if err != nil && !errors.As(err, &broken) {
		return fmt.Errorf("%s: mirror-rescued: %w", s.Server.Hostname, err)
	}
	if err != nil {
		s.Log.Error("rescued refs left out", "repository", repo.Dir, "error", err)
	}
	if entries == nil {
		entries = []rescue.Entry{}
	}
	return json.NewEncoder(s.Stdout).Encode(entries)
}
