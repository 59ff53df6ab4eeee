package inbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Origin says why a peer is to receive a repository.
type Origin string

const (
	// OriginList: the peer stood in one of the repository's lists. Such a job is
	// dropped when the peer is no longer in any list by the time it runs.
	OriginList Origin = "list"
	// OriginExplicit: a person named the peer, which need not be in any list.
	OriginExplicit Origin = "explicit"
)

// Event is one push to one repository and the peers that must learn of it.
type Event struct {
	ID         string    `json:"-"` // 8 hexadecimal digits, part of the file's name
	Repository string    `json:"repository"`
	Peers      []string  `json:"peers"` // at least one
	Origin     Origin    `json:"origin"`
	Time       time.Time `json:"time"` // when the push ended, on this server's clock
}

// maxEventBytes bounds what is read from, and written to, an event file: a thousand peers
// with names of a hundred bytes need a tenth of it.
const maxEventBytes = 1 << 20

// maxNameBytes bounds a repository's or a peer's name (PATH_MAX).
const maxNameBytes = 4096

// encode is the inverse of parse. It refuses what parse would refuse, so that nothing is
// acknowledged to a user that the worker would then set aside.
func encode(e Event) ([]byte, error) {
	e.Time = e.Time.UTC().Round(0)
	if err := e.validate(); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	if buf.Len() > maxEventBytes {
		return nil, fmt.Errorf("event of %d bytes is larger than %d: name fewer peers", buf.Len(), maxEventBytes)
	}
	return buf.Bytes(), nil
}

// parse reads an event file's content strictly: a member this version does not know means
// that a newer version wrote the file, and guessing at its meaning could push to the wrong peer.
func parse(data []byte) (Event, error) {
	if !utf8.Valid(data) {
		return Event{}, errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var e Event
	if err := dec.Decode(&e); err != nil {
		return Event{}, fmt.Errorf("not an event of this version: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Event{}, errors.New("more than one JSON value")
	}
	if err := e.validate(); err != nil {
		return Event{}, err
	}
	return e, nil
}

// validate checks the shape only; whether the names make sense is for the packages that
// know the configuration.
func (e Event) validate() error {
	if err := checkName("repository", e.Repository); err != nil {
		return err
	}
	if len(e.Peers) == 0 {
		return errors.New("event names no peers")
	}
	for _, peer := range e.Peers {
		if err := checkName("peer", peer); err != nil {
			return err
		}
	}
	if e.Origin != OriginList && e.Origin != OriginExplicit {
		return fmt.Errorf("origin %q is neither %q nor %q", e.Origin, OriginList, OriginExplicit)
	}
	if e.Time.IsZero() {
		return errors.New("event has no time")
	}
	return nil
}

func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("event has an empty %s", what)
	case len(name) > maxNameBytes:
		return fmt.Errorf("%s name of %d bytes is longer than %d", what, len(name), maxNameBytes)
	case !utf8.ValidString(name), strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%s %q contains control characters or is not UTF-8", what, name)
	}
	return nil
}

// idOf extracts the ID from an event file's name, or reports that it is not one.
func idOf(name string) (id string, ok bool) {
	stem, ok := strings.CutSuffix(name, ".json")
	if !ok || len(stem) != 19+1+8 || stem[19] != '-' {
		return "", false
	}
	isDigit := func(r rune) bool { return r >= '0' && r <= '9' }
	isHex := func(r rune) bool { return isDigit(r) || r >= 'a' && r <= 'f' }
	if strings.TrimFunc(stem[:19], isDigit) != "" || strings.TrimFunc(stem[20:], isHex) != "" {
		return "", false
	}
	return stem[20:], true
}
