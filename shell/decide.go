package shell

import (
	"fmt"

	"mirror-shell/mirrorcfg"
)

// Peer is another server, authenticated by its key. It is a type of its own,
// and so is User, that neither can stand in for the other.
type Peer struct{ name string }

// User is a person, authenticated by their key here, or by a peer that may
// redirect.
type User struct{ name string }

// NewPeer checks the name that an authorized_keys line gives a peer.
func NewPeer(name string) (Peer, error) { return Peer{name}, mirrorcfg.CheckHost(name) }

// NewUser checks the name that an authorized_keys line gives a user.
func NewUser(name string) (User, error) { return User{name}, mirrorcfg.CheckUser(name) }

// Action is what a Decision leads to.
type Action int

const (
	Refuse      Action = iota // say Message, exit 1
	Greet                     // info
	RunGit                    // git VERB on the repository
	Redirect                  // pass the user's push on to Host
	PushNow                   // push the repository to Host in the foreground
	SetMeta                   // read metadata and store it
	Digests                   // tell Host the digests of its repositories
	TakePush                  // take a mirror push of Host without showing refs first
	TellKnown                 // tell which values the master is known to have set
	TellRescued               // tell what was rescued
	TakeWild                  // take creator and permissions, and create the repository if it is not here
	CreateRepo                // read metadata, make the repository with Host as its master
	DeleteRepo                // move the repository of the master Host to the trash
	RenameRepo                // give the repository of the master Host another name
	TellDone                  // say that there is nothing to do, because of Done
)

// Decision is what becomes of a Request.
type Decision struct {
	Action  Action
	Message string // Refuse: the reason, for a "fatal: " line; else a line for stderr, or ""
	Host    string // Redirect, PushNow, Digests, SetMeta, TakePush, TakeWild, CreateRepo, DeleteRepo, RenameRepo
	Done    string // TellDone
	Access  Access // what User needs besides; with Refuse, what they need to be told Message
	User    User   // who acts, when it is a person
	// AnyObject is for the master that fetches: it may have what was rescued here, by
	// its id, though no ref is shown.
	AnyObject bool
}

// Access is what [users] authorize is asked for.
type Access string

const (
	NoAccess Access = ""
	Read     Access = "R"
	Write    Access = "W"
)

// Facts is all that a decision depends on.
type Facts struct {
	Hostname string
	Repo     *mirrorcfg.Repo // nil: not on this server
	Renamed  string          // what the repository is called now that once had that name
	Target   *mirrorcfg.Repo // of mirror-rename: what has the new name already
	Governs  bool            // of the name that is to be new: see mirrorcfg.Server.Governs
	Gitolite bool            // gitolite makes the repositories here
	Create   bool            // [accept] create takes the name, of mirror-rename the new one
	Delete   bool            // [accept] delete takes the name
}

func refuse(format string, args ...any) Decision {
	return Decision{Message: fmt.Sprintf(format, args...)}
}

// DecidePeer decides what a peer's request leads to.
// Being a peer gives no access by itself: everything depends on what the
// repository's own configuration says about that peer.
func DecidePeer(f Facts, peer Peer, req Request) Decision {
	switch req.Verb {
	case Info:
		return Decision{Action: Greet}
	case ReceivePack, MirrorMeta, MirrorPush, MirrorKnown, MirrorRescued:
		return decideMirrorPush(f, peer, req)
	case MirrorCreate:
		return decideCreate(f, peer, req)
	case MirrorDelete:
		return decideDelete(f, peer, req)
	case MirrorRename:
		return decideRename(f, peer, req)
	case UploadPack:
		return decideFetch(f, peer, req)
	case RequestPush:
		return decideRequestPush(f, peer, req)
	case RedirectedPush:
		return decideRedirected(f, peer, req)
	case WildPerms:
		return decideWild(f, peer, req)
	case MirrorDigest: // of what the asking peer is the master of, and nothing else
		return Decision{Action: Digests, Host: peer.name}
	}
	return refuse("%s <==//== %s: a peer may not send %s", f.Hostname, peer.name, req.Verb)
}

func decideMirrorPush(f Facts, peer Peer, req Request) Decision {
	reason := ""
	switch role := f.role(); {
	case f.Repo == nil:
		reason = missing(f, peer, req.Repo)
	case role == mirrorcfg.Local:
		reason = req.Repo + " is local"
	case role == mirrorcfg.Master:
		reason = f.Hostname + " is the master of " + req.Repo
	case f.Repo.Master != peer.name:
		reason = "the master of " + req.Repo + " is " + f.Repo.Master
	default:
		d := Decision{Action: RunGit, Message: fmt.Sprintf("%s <=== (%s) ==== %s", f.Hostname, req.Repo, peer.name)}
		switch req.Verb {
		case MirrorMeta:
			d = Decision{Action: SetMeta, Host: peer.name}
		case MirrorPush:
			d.Action, d.Host = TakePush, peer.name
		case MirrorKnown:
			d = Decision{Action: TellKnown}
		case MirrorRescued:
			d = Decision{Action: TellRescued}
		}
		return d
	}
	return refuse("%s <==//== %s mirror-push rejected: %s", f.Hostname, peer.name, reason)
}

// decideFetch says the same of a repository that is not here and of one that is
// none of the peer's business.
func decideFetch(f Facts, peer Peer, req Request) Decision {
	if f.role() != mirrorcfg.Local && (f.Repo.Master == peer.name || f.Repo.Listed(f.Hostname, peer.name)) {
		return Decision{Action: RunGit, AnyObject: f.Repo.Master == peer.name}
	}
	return refuse("%s ==//==> %s fetch rejected: %s is not mirrored to %s", f.Hostname, peer.name, req.Repo, peer.name)
}

func decideRequestPush(f Facts, peer Peer, req Request) Decision {
	// One answer for what is none of the peer's business, be it here or not.
	reason := "not in slave list of " + req.Repo
	switch f.role() {
	case mirrorcfg.Master:
		if f.Repo.IsSlave(f.Hostname, peer.name) {
			return Decision{Action: PushNow, Host: peer.name}
		}
	case mirrorcfg.Slave:
		if f.Repo.Master == peer.name || f.Repo.Listed(f.Hostname, peer.name) {
			reason = "the master of " + req.Repo + " is " + f.Repo.Master
		}
	}
	return refuse("%s ==//==> %s refused: %s", f.Hostname, peer.name, reason)
}

// decideRedirected never redirects again: two servers that name each other as
// master would pass a push around for ever.
func decideRedirected(f Facts, peer Peer, req Request) Decision {
	reason := ""
	switch {
	case f.Repo == nil && f.Renamed != "":
		reason = req.Repo + " is called " + f.Renamed + " now"
	case f.Repo == nil:
		reason = req.Repo + " does not exist here"
	case f.role() == mirrorcfg.Local:
		reason = req.Repo + " is local"
	case f.role() == mirrorcfg.Slave && f.Repo.Master == peer.name:
		reason = fmt.Sprintf("%s and %s take each other for the master of %s: let gitolite.mirror.master name the same server on both", peer.name, f.Hostname, req.Repo)
	case f.role() == mirrorcfg.Slave:
		reason = f.Hostname + " is not the master of " + req.Repo
	case !f.Repo.MayRedirect(f.Hostname, peer.name):
		reason = peer.name + " may not redirect pushes to " + req.Repo
	default:
		return Decision{Action: RunGit, Access: Write, User: User{req.User}}
	}
	return refuse("%s <==//== %s redirected push rejected: %s", f.Hostname, peer.name, reason)
}

// DecideUser decides what a user's request leads to.
// What it allows still needs the decision's Access.
func DecideUser(f Facts, user User, req Request) Decision {
	switch req.Verb {
	case Info:
		if req.Back {
			return refuse("%s: info --back is for peers", f.Hostname)
		}
		return Decision{Action: Greet, User: user}
	case ReceivePack, UploadPack, UploadArchive:
	default:
		return refuse("%s: %s may not send %s: push and fetch with git, or send info", f.Hostname, user.name, req.Verb)
	}
	switch {
	case f.Repo == nil:
		return notForUser(f.Hostname, user, req)
	case req.Verb != ReceivePack:
		return Decision{Action: RunGit, Access: Read, User: user}
	case f.role() != mirrorcfg.Slave:
		return Decision{Action: RunGit, Access: Write, User: user}
	case f.Repo.Redirects(f.Hostname):
		line := fmt.Sprintf("%s ==== %s (%s) ===> %s", f.Hostname, user.name, req.Repo, f.Repo.Master)
		return Decision{Action: Redirect, Message: line, Host: f.Repo.Master, Access: Write, User: user}
	}
	// The reason says that the repository exists: it is for who may read it.
	d := refuse("%s", f.Repo.NotMaster(f.Hostname))
	d.Access, d.User = Read, user
	return d
}

// notForUser says the same of a repository that is not here and of one that the
// user has no right to.
func notForUser(hostname string, user User, req Request) Decision {
	return refuse("%s: repository %s is not here, or is not for %s", hostname, req.Repo, user.name)
}

func (f Facts) role() mirrorcfg.Role {
	if f.Repo == nil {
		return mirrorcfg.Local
	}
	return f.Repo.Role(f.Hostname)
}
