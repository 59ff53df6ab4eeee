// Package shell is what an ssh session gets instead of a shell.
//
// sshd (or the built-in server) has authenticated a key, and the key's line in
// authorized_keys says who that is: a peer, which is another server, or a user.
// From there every session takes three steps, of which the first two are pure:
//
//	Parse       SSH_ORIGINAL_COMMAND → Request, by a grammar, never by a shell
//	Decide…     Request, identity, configuration → Decision
//	Session     carries the decision out, and where git or ssh has to run,
//	            becomes that program: no process of ours stays in between
//
// Peers and users are different types with different rules. A peer's key lets
// it push what it is the master of, read what is mirrored to it, ask for a push
// of it, and redirect a user's push where the repository allows; nothing else.
package shell
