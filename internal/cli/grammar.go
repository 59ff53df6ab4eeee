// Package cli is the command line that people and other programs type: one
// grammar for mirror-shell and mirrord, and the commands that mirror-shell
// carries out itself.
//
// People learn one program. What needs the database, or anything else that takes
// long to load, is parsed by mirror-shell all the same, for help and for
// mistakes, and then handed to mirrord, which stands beside it and parses the
// same arguments with the same grammar.
package cli

import (
	"time"

	"github.com/alecthomas/kong"
)

// Grammar is every command with its arguments. Help texts are its tags.
type Grammar struct {
	Config  string           `help:"Server configuration file (else $$MIRROR_SHELL_CONFIG, ~/.config/mirror-shell/config.toml, /etc/mirror-shell/config.toml)." placeholder:"FILE"`
	Version kong.VersionFlag `help:"Print the version."`

	RequestPush  RequestPushCmd `cmd:"" help:"Push a repository to its slaves, or to the peers and lists named."`
	Sync         SyncCmd        `cmd:"" help:"Compare repositories with their peers and push what differs; for cron."`
	Status       StatusCmd      `cmd:"" help:"Show how far behind every copy is, and why."`
	Doctor       DoctorCmd      `cmd:"" help:"Check this server and every peer, both ways, and say what to do."`
	Rescued      RescuedCmd     `cmd:"" help:"List what mirror pushes would have destroyed on this server; show, restore or drop it."`
	AddPeer      AddKeyCmd      `cmd:"" help:"Let a server in as a peer: the key file's name is the server's hostname, e.g. sam.pub."`
	AddUser      AddKeyCmd      `cmd:"" help:"Let a user in: alice.pub, or alice@laptop.pub for another key of alice."`
	RemovePeer   NameCmd        `cmd:"" help:"Remove a peer's keys."`
	RemoveUser   NameCmd        `cmd:"" help:"Remove a user's keys, or one of them (alice@laptop)."`
	ListKeys     ListKeysCmd    `cmd:"" help:"List the keys of peers and users."`
	InstallHooks HooksCmd       `cmd:"" help:"Put the hooks into repositories; existing hooks are kept and go on running."`
	Apply        ApplyCmd       `cmd:"" help:"Make the git config of the repositories what a mirror map says."`
	Approve      ApproveCmd     `cmd:"" help:"Let a held sync through, once: make the peer like this server, whatever it loses by that."`
	Pause        PeerArgCmd     `cmd:"" help:"Stop pushing to a peer; what arrives meanwhile is kept."`
	Resume       PeerArgCmd     `cmd:"" help:"Push to a paused peer again."`
	Import       ImportCmd      `cmd:"" name:"import-gitolite" help:"Turn the mirroring of a gitolite 2 or 3 on this server into ours: print what would be done, and do it with --write."`
	Forget       ForgetCmd      `cmd:"" help:"Forget the jobs and the memory of a repository, which itself is not touched, for one that is gone, or whose master has changed; with --from, remove it from a backup peer's vault for good."`
	Backup       BackupCmd      `cmd:"" help:"Back up repositories of this server, masters, copies and local ones, to a backup peer."`
	Snapshots    SnapshotsCmd   `cmd:"" help:"List the snapshots in a backup peer's vault."`
	Restore      RestoreCmd     `cmd:"" help:"Bring repositories back from a backup peer, as they were at any point in time."`
	Verify       VerifyCmd      `cmd:"" help:"Check that a vault has what its snapshots need; read every byte, or try a real restore."`
	Prune        PruneCmd       `cmd:"" help:"Remove the snapshots that a policy does not keep, and then what no snapshot needs."`
	Delete       DeleteCmd      `cmd:"" help:"Move a repository to the trash, here and, where they accept it, on its peers."`
	Rename       RenameCmd      `cmd:"" help:"Give a repository another name, here and, where they accept it, on its peers."`
	Trash        TrashCmd       `cmd:"" help:"List deleted repositories; restore one, or destroy old ones."`
	Serve        struct{}       `cmd:"" help:"Run the worker (and the built-in ssh server, if configured) until ended."`
	Drain        struct{}       `cmd:"" help:"Run the worker until nothing is left to do; for a timer, and started by the hook."`
	Demo         DemoCmd        `cmd:"" help:"Show it all: three servers on this machine, real pushes, the result."`

	Peer         IdentityCmd `cmd:"" hidden:"" help:"Forced command of a peer (set in authorized_keys)."`
	User         IdentityCmd `cmd:"" hidden:"" help:"Forced command of a user (set in authorized_keys)."`
	Names        NamesCmd    `cmd:"" hidden:"" help:"Print the names of repositories, peers or users (used by the completion of shells)."`
	Await        AwaitCmd    `cmd:"" hidden:"" help:"Wait until a repository's jobs for some peers are done (used by post-receive)."`
	Where        WhereCmd    `cmd:"" name:"gitolite-where" hidden:"" help:"Tell gitolite whether a user's push goes on here or to the master (used by its trigger)."`
	MirrorDigest IdentityCmd `cmd:"" hidden:"" help:"Tell a peer the digests of the repositories that it is the master of (run for the verb mirror-digest)."`
	SSH          SSHCmd      `cmd:"" name:"demo-ssh" hidden:"" help:"A minimal ssh client (used by demo)." passthrough:""`
}

// RequestPushCmd is request-push REPO [-fg] [PEER|KEY]...
type RequestPushCmd struct {
	FG      bool     `name:"fg" help:"Push now, to exactly one peer, with the push's own output and exit status (also written -fg)."`
	Repo    string   `arg:"" help:"Repository."`
	Targets []string `arg:"" optional:"" name:"peer|key" help:"Peers, and list keys such as gitolite.mirror.hourly. Default: gitolite.mirror.slaves."`
}

// SyncCmd is sync [--key KEY] [--pull-from PEER] [REPO|GLOB]...
type SyncCmd struct {
	DryRun       bool     `short:"n" help:"Only compare, and name what differs."`
	Key          string   `help:"List key whose peers are compared (default: gitolite.mirror.slaves and gitolite.mirror.sync)." placeholder:"KEY"`
	JSON         bool     `name:"json" help:"Print the result as JSON."`
	PullFrom     string   `help:"First bring back here what this peer has of the repository: for a master that was restored from an older backup." placeholder:"PEER"`
	Quiet        bool     `short:"q" help:"Print failures and the summary only when there are failures; for cron."`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories (default: all)."`
}

// StatusCmd is status [REPO|GLOB]...
type StatusCmd struct {
	JSON         bool     `name:"json" help:"Print JSON."`
	Failing      bool     `help:"Only what needs a person: what fails, is held, was never made, or is late by more than notify.lag in any state; exit status 1 when there is any."`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories (default: all)."`
}

// DoctorCmd is doctor.
type DoctorCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// AddKeyCmd is add-peer and add-user.
type AddKeyCmd struct {
	File           string `arg:"" name:"file.pub" help:"File with one public key."`
	AuthorizedKeys string `help:"File to edit (default: ~/.ssh/authorized_keys)." default:"~/.ssh/authorized_keys" placeholder:"FILE"`
}

// NameCmd is remove-peer and remove-user.
type NameCmd struct {
	Name           string `arg:"" help:"Name."`
	AuthorizedKeys string `help:"File to edit (default: ~/.ssh/authorized_keys)." default:"~/.ssh/authorized_keys" placeholder:"FILE"`
}

// ListKeysCmd is list-keys.
type ListKeysCmd struct {
	JSON           bool   `name:"json" help:"Print JSON."`
	AuthorizedKeys string `help:"File to read (default: ~/.ssh/authorized_keys)." default:"~/.ssh/authorized_keys" placeholder:"FILE"`
}

// HooksCmd is install-hooks [REPO|--all].
type HooksCmd struct {
	All          bool     `help:"Every repository below repo_base."`
	Gitolite     bool     `help:"Every repository, now and later, of a gitolite 3 on this server."`
	Repositories []string `arg:"" optional:"" name:"repo" help:"Repositories."`
}

// ApproveCmd is approve REPO PEER.
type ApproveCmd struct {
	Repo string `arg:"" help:"Repository."`
	Name string `arg:"" name:"peer" help:"Peer."`
}

// PeerArgCmd is pause and resume.
type PeerArgCmd struct {
	Name string `arg:"" name:"peer" help:"Peer."`
}

// ForgetCmd is forget REPO and forget REPO --from PEER [--yes].
type ForgetCmd struct {
	From          string `help:"Say what this backup peer's vault has of the repository, and with --yes remove all of it, for good." placeholder:"PEER"`
	Yes           bool   `help:"With --from: do it."`
	AlthoughInUse bool   `help:"With --yes: also when the repository is still on this server and backed up to that peer, where the next backup begins anew."`
	AtOnce        bool   `help:"With --yes: do not wait for the grace period before data is deleted. No server may be backing the repository up."`
	JSON          bool   `name:"json" help:"With --from: print the result as JSON."`
	Repo          string `arg:"" help:"Repository."`
}

// BackupCmd is backup [REPO|GLOB]... --to PEER [--id ID].
type BackupCmd struct {
	To           string   `help:"Backup peer (may be left out when there is one only)." placeholder:"PEER"`
	ID           *string  `name:"id" help:"A name for this run over all repositories, to restore it by: letters, digits, dots, dashes, underscores." placeholder:"ID"`
	JSON         bool     `name:"json" help:"Print the result as JSON."`
	Quiet        bool     `short:"q" help:"Print failures, and the summary only when there are failures; for cron."`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories (default: all)."`
}

// SnapshotsCmd is snapshots [REPO|GLOB]... --from PEER.
type SnapshotsCmd struct {
	From         string   `help:"Backup peer (may be left out when there is one only)." placeholder:"PEER"`
	JSON         bool     `name:"json" help:"Print JSON, one object a line."`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories in the vault (default: all)."`
}

// RestoreCmd is restore REPO|GLOB|--all --from PEER [--at TIME|--id ID] --into DIR|--in-place.
type RestoreCmd struct {
	From         string   `help:"Backup peer (may be left out when there is one only)." placeholder:"PEER"`
	At           *string  `help:"Restore what was the latest snapshot then: \"2026-11-22 03:55\", \"3 days ago\", or a time with a zone (default: the latest of all)." placeholder:"TIME" xor:"when"`
	ID           *string  `name:"id" help:"Restore the run that was given this ID." placeholder:"ID" xor:"when"`
	Into         string   `help:"Make the repositories below this directory (either this or --in-place is needed)." placeholder:"DIR" xor:"where"`
	InPlace      bool     `help:"Make them below repo_base, in place of what is there, which is moved aside." xor:"where"`
	All          bool     `help:"Every repository in the vault."`
	Check        string   `help:"What is checked before a repository is put in its place: checksums, or in full also every object and all history (full, checksums)." enum:"full,checksums" default:"full" placeholder:"HOW"`
	WithoutHooks bool     `help:"Leave out hooks and config, which are code that runs on this server: for a vault that others may write to."`
	JSON         bool     `name:"json" help:"Print the result as JSON."`
	Quiet        bool     `short:"q" help:"Print failures only."`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories in the vault."`
}

// VerifyCmd is verify [REPO|GLOB]... --from PEER.
type VerifyCmd struct {
	From         string   `help:"Backup peer (may be left out when there is one only)." placeholder:"PEER"`
	ReadData     bool     `help:"Read every byte, and not only whether everything is there in the right size."`
	Drill        bool     `help:"Restore the latest snapshot into a scratch directory, run git fsck, and keep the report in the vault."`
	JSON         bool     `name:"json" help:"Print the result as JSON."`
	Quiet        bool     `short:"q" help:"Print findings, and the summary only when there are findings; for cron."`
	Repositories []string `arg:"" optional:"" name:"repo|glob" help:"Repositories in the vault (default: all)."`
}

// PruneCmd is prune [REPO|GLOB]... --from PEER --keep-….
type PruneCmd struct {
	From         string        `help:"Backup peer (may be left out when there is one only)." placeholder:"PEER"`
	KeepLast     int           `help:"Keep the newest N. Without any of these options, those of the peer's configuration count." placeholder:"N"`
	KeepHourly   int           `help:"Keep the newest of each of the last N hours that have one." placeholder:"N"`
	KeepDaily    int           `help:"The same for days." placeholder:"N"`
	KeepWeekly   int           `help:"The same for weeks." placeholder:"N"`
	KeepMonthly  int           `help:"The same for months." placeholder:"N"`
	KeepYearly   int           `help:"The same for years." placeholder:"N"`
	KeepWithin   time.Duration `aliases:"within" help:"Keep all that are not older than this, e.g. 720h; --within is the same." placeholder:"TIME"`
	KeepID       []string      `name:"keep-id" help:"Keep what belongs to the run with this ID." placeholder:"ID"`
	DryRun       bool          `short:"n" help:"Only say what would be removed."`
	JSON         bool          `name:"json" help:"Print the result as JSON."`
	Quiet        bool          `short:"q" help:"Print failures only; for cron."`
	Repositories []string      `arg:"" optional:"" name:"repo|glob" help:"Repositories in the vault (default: all)."`
}

// DeleteCmd is delete REPO.
type DeleteCmd struct {
	Here bool   `help:"Only here: the peers keep their copies, and are not told."`
	Repo string `arg:"" help:"Repository."`
}

// RenameCmd is rename OLD NEW.
type RenameCmd struct {
	Here bool   `help:"Only here: the peers are not told, and have to be dealt with by hand."`
	Old  string `arg:"" help:"Repository."`
	New  string `arg:"" help:"Its new name."`
}

// TrashCmd is trash.
type TrashCmd struct {
	Restore string         `help:"Put this one (ID, as listed) back where it was." placeholder:"ID" xor:"do"`
	As      string         `help:"With --restore: under this name." placeholder:"REPO"`
	Expire  *time.Duration `help:"Destroy, for good, what was deleted longer ago than this (2160h are 90 days; 0s: all)." placeholder:"DURATION" xor:"do"`
	JSON    bool           `name:"json" help:"Print JSON."`
}

// DemoCmd is demo.
type DemoCmd struct {
	Repo string `help:"Repository to show it with: a path or URL (default: the repository that you stand in)." placeholder:"PATH|URL"`
	Keep bool   `help:"Keep the servers' directory, and print where it is."`
}

// IdentityCmd is peer NAME and user NAME.
type IdentityCmd struct {
	Name string `arg:"" help:"Who the key belongs to."`
}

// NamesCmd is names KIND.
type NamesCmd struct {
	Kind string `arg:"" enum:"repositories,peers,users" help:"What to list."`
}

// AwaitCmd is await REPO PEER...
type AwaitCmd struct {
	Timeout time.Duration `default:"60s" help:"How long to wait."`
	Event   string        `required:"" help:"Event of the inbox that must have been taken first."`
	Repo    string        `arg:""`
	Peers   []string      `arg:"" name:"peer"`
}

// SSHCmd is demo-ssh with the arguments that git and we give to ssh.
type SSHCmd struct {
	Args []string `arg:"" optional:""`
}
