// Package snapshot keeps a repository as it was, at many points in time, in a blob
// store, and brings it back.
//
// A git repository is nearly a snapshot format already: packs are never changed after they were
// written, and everything else (refs, HEAD, a few files) is small. So a snapshot is the packs, byte
// for byte, and a manifest that says what else there was. Nothing is packed anew for
// a backup, and nothing for a restore: packs are downloaded and refs are written.
//
// # Layout
//
// A vault is a store ([store.Store]) with these keys; REPO is the repository's name:
//
//	snapshots/REPO.git/NAME.json.zst[.age]    manifests: one per snapshot
//	checks/REPO.git/NAME.json                 what was found out later about a snapshot
//	data/REPO.git/pack-HASH.pack  .idx        packs as git names them, and their indexes
//	data/REPO.git/file-SHA256                 kept files, by the SHA-256 of their content
//	data/REPO.git/lfs-OID                     LFS objects
//	marks/REPO.git/NAME.json                  what prune is going to delete, and what it removed
//	marks/REPO.git/lease-HEX.json             a prune is at work; 32 random digits
//
// No element of a repository's name ends in ".git", so no key is the beginning
// of another. A blob that was put under a taken name because the one there may be on its way to be
// deleted, or is encrypted and so not the same bytes, has "~" and eight random digits after its
// name; a manifest always says the whole key.
//
// Every key is written once, with "if it does not exist", and none is ever overwritten: a vault
// can live in write-once storage. There is no pointer to the latest snapshot. It is the first
// key of a listing, because names begin with a number that gets smaller:
//
//	9999999999999-MILLISECONDS  -  TIME  -  DIGEST  -  STATE  -  SUM  [- ID]
//
// MILLISECONDS since 1970 as 13 digits; TIME again, for people (20261122T035557.123Z); DIGEST of the mirrored
// refs (package digest), 64 hex digits; STATE, 32 hex digits of the SHA-256 over all else that can
// change (see [Manifest.State]: every ref again, HEAD, files, recipients); SUM, 32 hex digits of the SHA-256 of the manifest as it is stored;
// ID, which the administrator may have given to a run over all repositories. A snapshot is never
// older than the one before it: a clock that goes back is overruled by a millisecond. So whether
// anything has to be done is decided by one request, a listing of one key.
// For a policy of days or months the time at which the store got an overruled snapshot counts.
//
// # Manifest
//
// A JSON object, compressed with zstd and, in a vault with recipients, encrypted with age. It is complete:
// whoever has it needs no other manifest. Its fields are those of [Manifest]. A reader refuses a format that
// it does not know, and ignores fields that it does not know. JSON is text, and names of refs need not be: a byte that is not part of
// a UTF-8 character is written as \xHH.
//
// Format 2 is format 1 with more that may be said: in "symrefs" a name that is not among the refs, of a symbolic ref to
// nothing, and the target HEAD; a mode other than 644 and 755; \xHH; and "sealed_for", of which STATE has a line. A manifest has
// it only where there is any of these, and format 1 everywhere else. A program that
// knows format 1 only refuses the others and says so; it goes on with all that has format 1. The first programs that knew the last three
// wrote them as format 1: readers take them there, too. Checks, marks and leases have format 1.
//
// What linked worktrees stand on (worktrees/NAME/HEAD where it is detached, and refs of their own) is among the refs, as
// refs/mirror/worktrees/NAME/HEAD and so on: nothing else may reach those commits, and to whatever reads the manifest they are
// refs. When such a ref is there already, with another value, NAME gets "-" and eight digits of the object's id. The digest is
// made of the mirrored refs, and knows nothing of them.
//
// Packs of a manifest together hold everything that its refs reach; they may hold more
// (what was unreachable when they were taken). Where the order matters, old packs come first.
//
// # How a snapshot is made whole
//
// Data first, the manifest last. A manifest whose Put succeeded names only blobs that are
// there. A backup that is killed leaves blobs that no manifest names; prune removes them when they are
// older than the grace period. For the same reason a backup that took longer than
// half of it looks again, before it publishes, whether all that it relies on is there still. The time in which the
// machine was suspended counts.
//
// # How a snapshot is taken
//
// Refs are read first, then loose objects, then packs, and again until the packs stand still: what the refs reach
// is among the objects then, whatever a gc does. Packs stay open while they are put, so one that a gc deletes
// is put to its end. The first snapshot has the repository's packs and one with what was loose. A later one
// has the packs of the one before it, if that is whole and encrypted for the same recipients, and one with what its
// refs do not reach; so packing the repository anew puts nothing. Of a repository that borrows objects (alternates) or has hundreds of packs one new pack is made of what its
// refs reach. Where info/grafts changes what that is, all packs are taken every time.
//
// What is damaged is found as far as it is read: checksums of packs and indexes while they
// are put, every object of a pack that is made. Whether history is whole, git finds out as it packs what is new. Of a
// first snapshot it does so afterwards, in the packs that were put: that takes longer than all the rest. Until then
// nothing is built on the snapshot, by any server: its manifest says "unwalked", and a check of the kind "good" or "bad"
// says what was found.
//
// # How packs stay few
//
// When a manifest would name more than 50 packs, the small ones are made into one, and larger ones with them as long as
// each is no larger than all before it together: so nothing is written again more often than its pack doubles. The old ones go
// with the snapshots that name them.
//
// In a store that retains, in whatever mode, what was put twice is locked twice, so more than 50 packs are allowed, up to
// 500. With every tenth pack beyond 50 the store is asked what stands in the way of making them fewer:
//
//   - A pack is left alone when a snapshot that lasts names it, that is one published no earlier than the pack was put. A snapshot lasts when the
//     policy of this server's configuration will still keep it when what is locked today is free, given that
//     snapshots go on coming as they did in the last such time. Its packs are prolonged by every prune, so putting their content into another
//     pack would lock it twice for as long as the policy says. Of the others the lock is not prolonged any more
//     once the next snapshot is there: it ends when that of the last one that names them does. Without a policy all snapshots last.
//   - What is in the store twice, that is all packs that the latest snapshot does not name, and those that are to be put together, stays below half of
//     what that snapshot has in packs, or 64 MiB if that is more.
//   - Less than ten packs are not worth it.
//
// With more than 500 the smaller half of them is put together, whatever it costs.
//
// # Checks
//
// A check has a key of the form
//
//	9999999999999-MILLISECONDS  -  TIME  -  KIND  -  SUM  [- ID]
//
// with the SUM of the snapshot that it speaks of, and a small JSON object ([Check]). KIND is "same"
// (the repository was found as in that snapshot, in the run with that ID), "bad" (the
// snapshot is not whole: history that its packs lack, or data that is damaged in the store), "good" (all of its history is
// there, or a restore for practice went well, or data that was damaged is right again), "drill" (such a restore was tried; the object says how it went) or "forgotten" (see
// "Forgetting"; it counts as bad, for good). Of "bad" and "good" the newest counts. Restores pass over a snapshot that is bad, and a backup after it puts everything anew,
// under other keys.
//
// # Pruning
//
// A [Policy] says which snapshots stay; [Vault.Prune] removes the others and, later, the data that none of those left needs.
// It shares the vault with backups and prunes on other machines, has no lock that could hold backups up, and may be
// killed anywhere. A mark is what it says in advance, a JSON object under a key of the form
//
//	9999999999999-MILLISECONDS  -  TIME  -  SUM        SUM: 32 hex digits of the SHA-256 of the object
//
//	format      1
//	time        when it was made; server, program: by whom
//	removed     [{"sum": SUM, "time": TIME}] of the snapshots that the policy dropped, or that were forgotten
//	forgotten   true: see "Forgetting"
//	grace       with forgotten: the longest grace period that is known, in seconds
//	candidates  keys of data that no manifest named when it was made
//	retires     keys of older marks, which do not count any more
//
// A mark or a blob is old when the store has had it for more than the grace period and a quarter of it; the time is
// that of the store's clock, against that of the lease. The period is this server's or, when it is longer, that of
// one that made a snapshot which is there ("grace" in its manifest, in seconds) or was forgotten ("grace" in the mark). One run does, in this order:
//
//  1. Lease. It puts {"format": 1, "time": TIME, "server": NAME} under a key with 32 random hex digits, and lists those
//     of others. Finding one that is not over
//     (20 minutes, or half the grace period if that is less) it takes its own away and ends. It renews the lease
//     after a quarter of that time, and deletes nothing after a half of it.
//  2. Look. It lists marks, data and manifests, and loads every manifest. One that it cannot read ends the
//     run: what that needs is unknown.
//  3. Sweep. It deletes data that an old mark has as a candidate, that is old itself, and that no
//     manifest names; the manifests are listed again before each hundred blobs.
//  4. Announce. It puts a mark with the snapshots that the policy drops. The mark retires all old marks, and every
//     younger one with a candidate that a manifest names by now, or of a time that is still to come. It repeats what they say was removed: the
//     thousand newest, and all that a snapshot which stays follows. Then the retired marks are deleted.
//  5. Remove. It deletes the manifests that were announced, and later their checks.
//  6. Nominate. It puts a mark with the data that is named by no manifest that is left, and is in no mark yet.
//     Data that no manifest ever named has to be as old as the grace period for it.
//
// Backups keep to this: a blob may be used again when the latest manifest names it, or when it is younger
// than half the grace period; else the content is put anew, under a name with "~". A backup that
// publishes later than half the grace period after it listed the latest manifest asks first, in this order, whether a mark older than
// half the grace period has one of its blobs as a candidate, and whether all of them are there.
//
// Why nothing that a manifest names is ever deleted. Call g the grace period and take a blob K that is deleted at
// D because of a mark of time M. Then M + g < D, K is older than g, and no manifest listed after M + g named it. So
// something must have published a manifest with K after that listing.
//
//   - A backup that found K in the latest manifest L, at T. When the mark was made, no manifest named K, so L
//     had been removed, and T lies before M. It published before T + g/2 < M + g, or looked again.
//   - A backup that found K younger than g/2, or put it. It published within g/2 of when it looked, thus before K was
//     g old, or looked again.
//   - A backup that looked again at R. It saw no mark with K that was older than g/2, and after that saw K: then D lies more than g/2
//     after R, and it published right after R.
//   - A backup that began from a manifest which had named K again, published as above by another, and was then
//     removed. Before it was removed its prune retired every mark with K, so M is later than that: the first case.
//   - Two prunes of which one deletes K, a backup puts it again, and the other deletes that. The lease keeps the second out.
//
// Each comparison has a quarter of g to spare, for clocks of different machines and for the last request of a backup.
// It follows that no backup may take much longer than the grace period, and that prune has to know the longest: a server
// of which no snapshot is there yet needs the same as the others.
//
// Data that the store retains is still a candidate when it may be deleted; manifests likewise. What the
// snapshots that stay need is retained anew before it runs out ([Vault.Extend]). A snapshot is
// found to have vanished when one follows it, and it is neither there nor in a mark as removed.
// All marks of a repository may be deleted by hand at any time: it costs another grace period, and that knowledge.
//
// # Forgetting
//
// [Vault.Forget] removes a repository from the vault, the latest snapshot included. Data belongs to one repository each, so no other one needs it. It
// keeps to what is said above, and all proofs hold: with the lease taken it
//
//  1. puts a mark with "forgotten" and all snapshots as removed, which retires every other mark;
//  2. deletes the manifests. Of one that the store retains a check says "forgotten"; no backup begins from it then, and no restore takes it
//     unasked. As long as one is there, all data stays: a snapshot is whole or gone;
//  3. puts a mark with all data as candidates, once no manifest is left; but, when none was there to begin with, not with data that is younger than the
//     grace period: a backup that begins anew may be putting it;
//  4. sweeps, as prune does. When told that no backup can be running, it does not wait for marks and blobs to be old;
//  5. deletes checks and marks when no data is left, the mark with "forgotten" last.
//
// Prune on the machine that was told so (Vault.ToForget) drops the snapshots, prolongs nothing for them, and leaves the mark alone until they are gone and
// there are others. Elsewhere a mark, which whoever can add to the vault can put, has no snapshot dropped. A repository with such a mark and without snapshots is finished, from step 3 on, by the next run of Forget or by whoever
// goes through [Vault.Forgotten]. A backup that began before goes on, and what it publishes is a new beginning; so is a backup that begins afterwards.
//
// # Restoring
//
// A snapshot is restored beside its target, in a directory of the same file system named
// .NAME.mirror-shell-restore-DIGITS, is checked there, and takes the target's place by a rename. What was there
// before stays untouched until the new repository is whole, and then stays beside it as
// NAME.before-restore-TIME. Whatever the moment of a crash, the target is the old repository or the new one; the next
// restore to the same target removes what is left of the one that was killed.
//
// # Whom a restore trusts
//
// Bytes of the store are compared with the SHA-256 in the manifest, and the manifest with the name of
// its key. That finds every damage. It does not say who wrote the snapshot: whoever may write
// to the vault can put a new one there, with a name that fits. Git objects of a stranger are
// only data, and paths are confined to the directory. But hooks, and many keys of a config, are programs
// that run as the account of whoever next uses the repository. So by default, where people restore their own backup
// after a disaster and need all of it, who may write to the vault is trusted like
// the account itself. Encryption does not change that: anybody can encrypt for a public key. For a vault that others write to
// there is RestoreOptions.WithoutHooks. No git process sees a restored config or hook while the snapshot is
// checked.
package snapshot
