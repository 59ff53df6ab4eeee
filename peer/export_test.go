package peer

import "time"

// NewSSH makes an ssh peer that is reached in the test's own way.
func NewSSH(name, hostname string, stall time.Duration, transport Transport) Peer {
	known := &identities{}
	known.found(name, serverIdentity{}) // what identify sends has a test of its own
	return &sshPeer{identities: known, name: name, hostname: hostname, stall: stall, transport: transport, stock: &stockMemory{}, maxDelete: 50, maxPart: maxPart}
}

// SetPart makes so many refs a part of a push.
func SetPart(p Peer, refs int) { p.(*sshPeer).maxPart = refs }
