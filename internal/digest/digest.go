// Package digest condenses all refs of a repository into one short string.
//
// Two repositories with the same refs have the same digest, and two with
// different refs practically never do. A server can thus be compared with its
// master for ten thousand repositories in one exchange of a few hundred kilobytes,
// and "nothing to do" is decided without opening a connection per repository. What
// is recorded as a peer's last success is the digest it was equal at.
//
// A digest is the SHA-256, in lower-case hex, of one line
//
//	OID SP REFNAME LF
//
// per ref, sorted by the bytes of the name. A ref name has neither space nor line feed,
// so different sets of refs are different texts. An empty repository has a digest
// too: that of the empty text. Which refs count is the caller's choice: the mirrored ones, never
// refs/mirror/, and not HEAD, which some peers neither show nor take and which is compared apart.
//
// A digest says only that something differs, not what. It must be made from refs
// that were read without any error or warning: a broken ref that was left out would
// look like a deletion.
package digest

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
)

// Of returns the digest, 64 hex digits, of refs: full ref name → object id in
// lower-case hex. Annotated tags count with the tag's own id.
func Of(refs map[string]string) string {
	sum := sha256.New()
	w := bufio.NewWriter(sum) // neither it nor a hash ever fails to write
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		w.WriteString(refs[name])
		w.WriteByte(' ')
		w.WriteString(name)
		w.WriteByte('\n')
	}
	w.Flush()
	return hex.EncodeToString(sum.Sum(nil))
}
