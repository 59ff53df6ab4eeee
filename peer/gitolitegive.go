package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"mirror-shell/internal/meta"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// HEAD and the description, to a gitolite 3 that has no mirror-shell. Its own masters send neither.
// But it has commands for them, which any key may give that it lets in:
//
//	symbolic-ref REPO HEAD refs/heads/main    is not enabled by default, and wants W of any ref
//	desc REPO the description                 is; wants W, and option writer-is-owner
//
// A push as server-FRODO needs no rule, since gitolite checks no access of a master's push; these
// two commands do: RW = server-FRODO. So a gitolite refuses both until its administrator
// has done something for it, and what that is stands in the note. No push pays for what is
// refused: it is sent again after a day, when somebody asks for it (request-push -fg), and HEAD when the
// peer has not let us delete the branch to which its own points.
//
// gitolite takes apart the command at its spaces, has no quotes, and refuses most other
// characters. What cannot be said so is not sent.

// givenFor is how long HEAD or a description that a gitolite has refused is not sent again by itself.
const givenFor = 24 * time.Hour

// maxGiven bounds what is put into a command, in bytes.
const maxGiven = 1000

// speakable is what gitolite admits in commands from outside, in words with one space in between.
var speakable = regexp.MustCompile(`^[-0-9A-Za-z._@/+:,%=]+( [-0-9A-Za-z._@/+:,%=]+)*$`)

// errUnspeakable is about a value that no command of gitolite's can carry.
var errUnspeakable = errors.New("gitolite's command takes letters, digits and -._@/+:,%= only, with single spaces in between")

// checkGiven looks whether a gitolite's command can carry the value for the repository.
func checkGiven(repo, value string) error {
	if clean, err := mirrorcfg.CleanRepo(repo); err != nil || clean != repo || strings.HasPrefix(repo, "@") {
		return fmt.Errorf("%.80q is no name of a repository there", repo)
	}
	if len(value) > maxGiven {
		return fmt.Errorf("it has more than %d bytes", maxGiven)
	}
	if !speakable.MatchString(value) || strings.Contains(value, "../") || value == "0" { // which perl takes for no text
		return errUnspeakable
	}
	return nil
}

// give sends HEAD and the description, where they are news.
func (h *metaSync) give(ctx context.Context) error {
	if h.given {
		return nil
	}
	h.given = true
	repo := h.src.Config.Name
	if h.target != "" && (h.known.Head.New(h.target) || h.empty) {
		if err := h.giveOne(ctx, &h.known.Head, gift{what: "HEAD", value: h.target, verb: "symbolic-ref", command: "symbolic-ref " + repo + " HEAD " + h.target}); err != nil {
			return err
		}
	}
	if h.data.Description == nil {
		return nil // what is wrong with it is a note already
	}
	known, text := &h.known.Description, strings.TrimSuffix(*h.data.Description, "\n")
	switch {
	case text == "" && known.Value != "" && known.Why == "":
		*known = meta.Given{Why: "description was not taken away: on " + h.name + " gitolite's desc can only change it", Again: time.Now().Add(givenFor).Unix()}
	case text == "" && known.Value != "":
		*known = meta.Given{}
	case text != "" && (known.New(text) || h.empty):
		return h.giveOne(ctx, known, gift{what: "description", value: text, verb: "desc", command: "desc " + repo + " " + text, also: "option writer-is-owner = 1"})
	}
	return nil
}

// gift is one thing for a gitolite.
type gift struct {
	what, value string
	verb        string // of gitolite's
	command     string // the whole
	also        string // what gitolite.conf there needs for it beside a right to write
}

// giveOne sends one, and notes what came of it. The error is that this is not known.
func (h *metaSync) giveOne(ctx context.Context, known *meta.Given, g gift) error {
	*known = meta.Given{Value: g.value, Why: g.what + " was not sent"} // and due at once
	err := checkGiven(h.src.Config.Name, g.value)
	if err != nil {
		known.Why, known.Again = g.what+" was not sent: "+err.Error(), time.Now().Add(givenFor).Unix()
		return nil
	}
	why, err := h.runThere(ctx, g.command, "")
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", g.what, err)
	case why == "":
		known.Why = ""
	default:
		known.Why, known.Again = h.givenRefusal(g, why), time.Now().Add(givenFor).Unix()
	}
	return nil
}

// givenRefusal says, after a refusal, which lines the administrator of the slave has to write.
func (h *metaSync) givenRefusal(g gift, why string) string {
	lines := "`RW = " + proc.OneLine(h.identities.of(h.name).user, 80) + "`"
	if g.also != "" {
		lines += ", `" + g.also + "`"
	}
	switch {
	case strings.Contains(why, "unknown git/gitolite command"):
		return fmt.Sprintf("%s was not sent: %s has not enabled gitolite's %s: add '%s' to ENABLE in ~/.gitolite.rc there, and for %s %s to its gitolite.conf",
			g.what, h.name, g.verb, g.verb, h.src.Config.Name, lines)
	case strings.Contains(why, "not authori"): // each of the two spells it in its own way
		return fmt.Sprintf("%s was not taken: %s says: %s: for %s gitolite.conf there needs %s", g.what, h.name, why, h.src.Config.Name, lines)
	}
	return fmt.Sprintf("%s was not taken: %s says: %s", g.what, h.name, why)
}

// headNote is the note about HEAD at a peer that does not take it as our servers do.
func (h *metaSync) headNote() []string {
	switch known := h.known.Head; {
	case known.Value != h.target:
		return []string{"HEAD was not sent: " + h.name + " does not take it"}
	case known.Why != "":
		return []string{known.Why}
	}
	return nil
}

// stuck says what to do about a branch that the peer does not let us delete, since its HEAD
// points to it; "" where that is not known. A gitolite is told HEAD again by the next try.
func (h *metaSync) stuck(branch string) string {
	if branch == "" || h.data == nil {
		return ""
	}
	if h.target == "" || h.target == branch {
		return "HEAD points to it on " + h.name + ": make another branch the default here, with git symbolic-ref HEAD refs/heads/NAME, or set receive.denyDeleteCurrent there to ignore"
	}
	byHand := "on " + h.name + ", git symbolic-ref HEAD " + h.target
	if h.identities.of(h.name).make != gitolite && h.known.Head.Value == "" {
		return "HEAD points to it on " + h.name + " and does not travel: " + byHand
	}
	h.known.Head.Value, h.known.Head.Again, h.stays = h.target, 0, true
	h.known.Head.Why = cmp.Or(h.known.Head.Why, "HEAD was changed on "+h.name)
	return "HEAD points to it there: " + h.known.Head.Why + "; or, " + byHand
}
