package shell

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"mirror-shell/mirrorcfg"
)

// Verb is what a client asks for.
type Verb string

const (
	Info          Verb = "info"
	ReceivePack   Verb = "git-receive-pack"
	UploadPack    Verb = "git-upload-pack"
	UploadArchive Verb = "git-upload-archive"
	RequestPush   Verb = "request-push"
	MirrorMeta    Verb = "mirror-meta"
	MirrorDigest  Verb = "mirror-digest"
	MirrorPush    Verb = "mirror-push"
	MirrorKnown   Verb = "mirror-known"
	MirrorRescued Verb = "mirror-rescued"
	MirrorCreate  Verb = "mirror-create"
	MirrorDelete  Verb = "mirror-delete"
	MirrorRename  Verb = "mirror-rename"
	// RedirectedPush is a user's push that a slave passes on to the master:
	// USER=alice SOC=git-receive-pack 'REPO'.
	RedirectedPush Verb = "USER="
	// WildPerms is how gitolite 3 creates a copy. Request.User is the creator.
	WildPerms Verb = "CREATOR="
)

// peerVerbs are announced by `info --json`.
var peerVerbs = []Verb{Info, ReceivePack, UploadPack, RequestPush, RedirectedPush, MirrorMeta, MirrorDigest, MirrorPush, MirrorKnown, MirrorRescued,
	MirrorCreate, MirrorDelete, MirrorRename}

// Request is one parsed command. Repo and User have passed their grammars.
type Request struct {
	Verb Verb
	Repo string // "" for Info and MirrorDigest
	To   string // MirrorRename only: the new name
	User string // RedirectedPush and WildPerms only
	JSON bool   // Info only
	Back bool   // Info only: also try the way back to the asking peer
}

// Command writes a request as a client sends it: Parse gives the request back.
func (r Request) Command() string {
	switch r.Verb {
	case Info:
		words := []string{string(Info)}
		if r.JSON {
			words = append(words, "--json")
		}
		if r.Back {
			words = append(words, "--back")
		}
		return strings.Join(words, " ")
	case MirrorDigest:
		return string(MirrorDigest)
	case WildPerms:
		return fmt.Sprintf("%s%s perms -c '%s'", WildPerms, r.User, r.Repo)
	case RedirectedPush:
		return fmt.Sprintf("%s%s SOC=%s '%s'", RedirectedPush, r.User, ReceivePack, r.Repo)
	case MirrorRename:
		return fmt.Sprintf("%s '%s' '%s'", r.Verb, r.Repo, r.To)
	}
	return fmt.Sprintf("%s '%s'", r.Verb, r.Repo)
}

// maxCommand is above the longest valid command: a verb and two names.
const maxCommand = 1100

// Parse reads SSH_ORIGINAL_COMMAND. Nothing here is interpreted by a shell, so
// there is one way to write each command: the verb, one space, and the
// repository, in single quotes (as git sends it) or without.
func Parse(command string) (Request, error) {
	if err := checkText(command); err != nil {
		return Request{}, err
	}
	verb, rest, more := strings.Cut(command, " ")
	if verb == "git" { // newer clients may send "git receive-pack 'x'"
		sub, arg, _ := strings.Cut(rest, " ")
		verb, rest = "git-"+sub, arg
	}
	switch {
	case command == "" || verb == string(Info):
		return parseInfo(rest, more)
	case strings.HasPrefix(verb, string(RedirectedPush)):
		return parseRedirected(strings.TrimPrefix(verb, string(RedirectedPush)), rest)
	}
	if creator, wild := strings.CutPrefix(verb, string(WildPerms)); wild {
		return parseWild(creator, rest)
	}
	switch v := Verb(verb); v {
	case MirrorDigest:
		if more {
			return Request{}, errors.New("mirror-digest takes no arguments")
		}
		return Request{Verb: v}, nil
	case ReceivePack, UploadPack, UploadArchive, RequestPush, MirrorMeta, MirrorPush, MirrorKnown, MirrorRescued, MirrorCreate, MirrorDelete:
		repo, err := parseRepo(rest)
		return Request{Verb: v, Repo: repo}, err
	case MirrorRename:
		return parseRename(rest)
	}
	return Request{}, fmt.Errorf("unknown command %.60q: send info, or push and fetch with git", command)
}

// checkText refuses what no valid command contains before anything looks at it.
func checkText(command string) error {
	switch {
	case len(command) > maxCommand:
		return fmt.Errorf("command of %d bytes is too long", len(command))
	case !utf8.ValidString(command):
		return errors.New("command is not valid UTF-8")
	case strings.ContainsFunc(command, unicode.IsControl):
		return errors.New("command contains control characters")
	}
	return nil
}

func parseInfo(options string, any bool) (Request, error) {
	req := Request{Verb: Info}
	if !any {
		return req, nil
	}
	for word := range strings.SplitSeq(options, " ") {
		switch word {
		case "--json":
			req.JSON = true
		case "--back":
			req.Back = true
		default:
			return Request{}, fmt.Errorf("info does not take %.60q: send info or info --json", word)
		}
	}
	return req, nil
}

func parseRedirected(user, rest string) (Request, error) {
	if err := mirrorcfg.CheckUser(user); err != nil {
		return Request{}, err
	}
	arg, ok := strings.CutPrefix(rest, "SOC="+string(ReceivePack)+" ")
	if !ok {
		return Request{}, errors.New("only git-receive-pack can be redirected")
	}
	repo, err := parseRepo(arg)
	return Request{Verb: RedirectedPush, User: user, Repo: repo}, err
}

// parseRename reads the two names of mirror-rename. Neither can contain a space.
func parseRename(rest string) (Request, error) {
	from, to, _ := strings.Cut(rest, " ")
	req := Request{Verb: MirrorRename}
	repo, err := parseRepo(from)
	if err != nil {
		return req, err
	}
	if req.To, err = parseRepo(to); err != nil {
		return Request{Verb: MirrorRename}, err
	}
	req.Repo = repo
	return req, nil
}

// parseRepo reads the one argument. A URL of the form ssh://host/name sends the
// name with a leading slash, which is dropped.
func parseRepo(arg string) (string, error) {
	if arg == "" {
		return "", errors.New("no repository named")
	}
	if inner, ok := strings.CutPrefix(arg, "'"); ok {
		if arg, ok = strings.CutSuffix(inner, "'"); !ok {
			return "", fmt.Errorf("%.60q: unbalanced quote", inner)
		}
	}
	if strings.HasPrefix(arg, "-") {
		return "", fmt.Errorf("%.60q: options are not allowed", arg)
	}
	return mirrorcfg.CleanRepo(strings.TrimPrefix(arg, "/"))
}
