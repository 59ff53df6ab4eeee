package worker

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"mirror-shell/shell"
)

// demoServer is one of the demo's servers.
type demoServer struct {
	demoHost
	address string
	daemon  *exec.Cmd
}

// setUp makes homes, keys and configurations, and tells everybody where the
// others are.
func (d *demonstration) setUp(ctx context.Context) error {
	bin := filepath.Join(d.dir, "bin")
	if err := writeFile(filepath.Join(bin, "ssh"), 0o700, "#!/bin/sh\nexec '"+filepath.Join(d.programs, "mirrord")+"' demo-ssh -- \"$@\"\n"); err != nil {
		return err
	}
	path := bin + ":" + d.programs + ":" + os.Getenv("PATH")
	d.alice = &demoHost{"alice", filepath.Join(d.dir, "alice"), path}
	public := map[string]string{}
	var hosts demoHosts = map[string]demoAddress{}
	for _, name := range hostnames {
		s := &demoServer{demoHost: demoHost{name, filepath.Join(d.dir, name), path}}
		var err error
		if s.address, err = freeAddress(); err != nil {
			return err
		}
		d.servers = append(d.servers, s)
		hostKey, err := s.files()
		if err != nil {
			return err
		}
		if public[name], err = newKey(s.home); err != nil {
			return err
		}
		hosts[name] = demoAddress{Address: s.address, HostKey: hostKey}
	}
	var err error
	if public["alice"], err = newKey(d.alice.home); err != nil {
		return err
	}
	if err := d.alice.identity(ctx); err != nil {
		return err
	}
	for _, h := range d.everybody() {
		if err := hosts.write(h.home); err != nil {
			return err
		}
	}
	for _, s := range d.servers {
		for name, key := range public {
			if name != s.name {
				if err := writeFile(filepath.Join(s.home, name+".pub"), 0o600, key); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (d *demonstration) everybody() []*demoHost {
	all := []*demoHost{d.alice}
	for _, s := range d.servers {
		all = append(all, &s.demoHost)
	}
	return all
}

// files writes the server's configuration and makes its host key, which it
// returns in authorized_keys' form.
func (s *demoServer) files() (string, error) {
	config := fmt.Sprintf("hostname = %q\n[ssh]\nlisten = %q\n[peer.vault]\nkind = \"backup\"\nurl = %q\n", s.name, s.address, filepath.Join(s.home, "vault"))
	if err := writeFile(filepath.Join(s.home, ".config/mirror-shell/config.toml"), 0o600, config); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(s.home, "repositories"), 0o700); err != nil {
		return "", err
	}
	key, err := shell.HostKey(filepath.Join(s.home, ".local/state/mirror-shell/ssh_host_ed25519_key"))
	if err != nil {
		return "", err
	}
	return string(ssh.MarshalAuthorizedKey(key.PublicKey())), nil
}

// identity is who alice commits as.
func (h *demoHost) identity(ctx context.Context) error {
	for _, kv := range [][2]string{{"user.name", h.name}, {"user.email", h.name + "@example.org"}, {"advice.detachedHead", "false"}} {
		if err := h.command(ctx, "git", "config", "--global", kv[0], kv[1]).Run(); err != nil {
			return fmt.Errorf("git config: %w", err)
		}
	}
	return nil
}

// newKey makes home/.ssh/id_ed25519 and returns the public half.
func newKey(home string) (string, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return "", err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return "", err
	}
	return string(ssh.MarshalAuthorizedKey(signer.PublicKey())), writeFile(filepath.Join(home, ".ssh/id_ed25519"), 0o600, string(pem.EncodeToMemory(block)))
}

func writeFile(file string, mode os.FileMode, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), mode)
}

// freeAddress finds a port on loopback that is free now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// serve starts the daemon and waits until its port answers.
func (s *demoServer) serve(ctx context.Context) error {
	log, err := os.Create(filepath.Join(s.home, "serve.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.daemon = s.command(ctx, "mirror-shell", "serve")
	s.daemon.Stderr = log
	if err := s.daemon.Start(); err != nil {
		return err
	}
	for range 500 {
		conn, err := net.DialTimeout("tcp", s.address, time.Second)
		if err == nil {
			return conn.Close()
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s does not start: %s", s.name, text)
}

func (s *demoServer) stop() {
	if s.daemon == nil {
		return
	}
	if err := s.daemon.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return
	}
	s.daemon.Wait()
}
