package shell

// The form of a line of the audit log: JSON, bounded, and nothing in it that a
// terminal would obey.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// text is a field, with what cannot be seen escaped.
func text(key, value string) slog.Attr { return slog.String(key, visible(clip(value, 2*maxAuditName))) }

// clip cuts text from elsewhere to at most max bytes of whole characters, its end
// replaced by three dots.
func clip(s string, max int) string {
	if len(s) <= max {
		return s
	}
	s = s[:max]
	for len(s) > 0 && max-len(s) < utf8.UTFMax { // do not cut a character
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s + "…"
}

// visible writes as Go's escapes what a terminal would not show as it is:
// control characters, separators of lines, marks that turn the direction of writing,
// bytes that are no UTF-8.
func visible(s string) string {
	plain := utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
	if plain {
		return s
	}
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// addressPort makes ADDRESS:PORT of sshd's SSH_CONNECTION ("ADDRESS PORT ADDRESS
// PORT"), and leaves what the built-in server says as it is.
func addressPort(from string) string {
	words := strings.Fields(clip(from, maxAuditName))
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	if strings.Contains(words[0], ":") {
		return "[" + words[0] + "]:" + words[1]
	}
	return words[0] + ":" + words[1]
}

// auditLine makes one line of JSON, ending in a newline. Fields that are "" are
// left out.
func auditLine(server, event string, fields []slog.Attr) []byte {
	var line bytes.Buffer
	line.Grow(512)
	handler := slog.NewJSONHandler(&line, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch {
		case a.Key == slog.LevelKey, a.Value.Kind() == slog.KindString && a.Value.String() == "":
			return slog.Attr{}
		case a.Key == slog.MessageKey:
			a.Key = "event"
		}
		return a
	}})
	record := slog.NewRecord(time.Now().UTC(), slog.LevelInfo, event, 0)
	record.AddAttrs(slog.String("server", server))
	record.AddAttrs(fields...)
	handler.Handle(context.Background(), record) // writing to memory cannot fail
	return line.Bytes()
}

// maxAuthInfo is far above what sshd writes for any key.
const maxAuthInfo = 64 << 10

// KeyFromSSHD returns the fingerprint of the key that sshd let in, from the file that
// SSH_USER_AUTH names where sshd_config says ExposeAuthInfo yes: lines METHOD
// TYPE BASE64. "" is what it returns whenever it cannot tell. A client that sshd lets
// set that variable can make it say anything, so it is for the log, and for
// nothing else; it opens files of ours only, and no pipe.
func KeyFromSSHD(file string) string {
	if file == "" {
		return ""
	}
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Getuid() && stat.Uid != 0 {
		return ""
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAuthInfo))
	if err != nil {
		return ""
	}
	return parseAuthInfo(string(data))
}

// parseAuthInfo returns the fingerprint of the last key of the file: where sshd
// demands two, that is the one whose line in authorized_keys counts.
func parseAuthInfo(text string) string {
	found := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 3 || words[0] != "publickey" {
			continue
		}
		blob, err := base64.StdEncoding.DecodeString(words[2])
		if err != nil || len(blob) == 0 {
			continue
		}
		found = fingerprint(words[1], blob)
	}
	return found
}

// fingerprint is what ssh-keygen -l prints: of a certificate, that of its key.
func fingerprint(kind string, blob []byte) string {
	if strings.HasSuffix(kind, "-cert-v01@openssh.com") {
		key, err := ssh.ParsePublicKey(blob)
		cert, ok := key.(*ssh.Certificate)
		if err != nil || !ok {
			return ""
		}
		return ssh.FingerprintSHA256(cert.Key)
	}
	sum := sha256.Sum256(blob)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
