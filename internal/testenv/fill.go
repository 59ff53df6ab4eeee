package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// FillState covers the server's state_dir with a file system that has no room
// left, not even for an empty file. No worker may run. The test is skipped on
// machines that do not let it mount one.
func (s *Server) FillState(t testing.TB) {
	t.Helper()
	dir := s.StateDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("size=64k,mode=0700,uid=%d,gid=%d", s.account.UID, s.account.GID)
	err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, options)
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs the right to mount a file system: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.filled = true
	s.mu.Unlock()
	// The directories that earlier pushes made are there on a disk that fills up.
	for _, sub := range []string{"inbox", "inbox/taken", "inbox/bad"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, sub), s.account.UID, s.account.GID); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Create(filepath.Join(dir, "filling"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill %s: %v", dir, err)
	}
}

// UnfillState undoes FillState, if it was done.
func (s *Server) UnfillState(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.filled {
		return
	}
	// Detached: a program that still has a file open there keeps it, unseen.
	if err := syscall.Unmount(s.StateDir(), syscall.MNT_DETACH); err != nil {
		t.Errorf("unmount %s: %v", s.StateDir(), err)
		return
	}
	s.filled = false
}
