// Package mirrorcfg answers what is configured: for this server, and for each of
// its repositories.
//
// The server's own configuration is one TOML file (Server). What happens to a
// repository is plain git config, read with git itself so that global, included
// and conditionally included files count (Repo). The model is gitolite's: every
// repository has one master; the master pushes to its slaves; every other server
// is told by the same configuration that it is a slave, or that the repository
// is local and nobody else's business.
//
//	[gitolite "mirror"]
//		master  = frodo                            ; users push there
//		slaves  = sam gollum                       ; frodo pushes to these at once
//		nightly = gitolite.mirror.hourly gimli     ; a list key, usable by name
//		hourly  = legolas
//		redirectOK = true                          ; slaves may pass users' pushes on
//
// Anything in a list that begins with gitolite.mirror. is a key and is expanded
// in place (Repo.Expand); anything else names a peer.
//
// For many repositories at once, and for many servers, one TOML file can say what
// that config shall be (Map); what has to be changed for it is decided here
// (PlanMap), and done by whoever asks.
//
// Names of repositories, hosts and users are the one thing that an attacker
// controls everywhere, so their grammar (CleanRepo, CheckHost, CheckUser) is
// narrow: it needs no quoting in a shell, on an ssh command line or in a path.
package mirrorcfg
