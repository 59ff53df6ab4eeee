package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"mirror-shell/internal/proc"
)

// Channels.
const (
	channelCommand = "command"
	channelWebhook = "webhook"
)

// Limits of a delivery.
const (
	deliveryTimeout = 30 * time.Second
	stopGrace       = 5 * time.Second
	maxAnswer       = 64 << 10 // bytes of a webhook's answer that are read, so that it can end well
	maxToken        = 8 << 10
	backoffBase     = 10 * time.Second
	backoffMax      = time.Hour
)

// backoff is the wait after that many failures in a row.
func backoff(attempts int) time.Duration {
	return min(backoffBase<<min(attempts-1, 20), backoffMax)
}

// deliver sends what is due, unless another process is at it, and says when the
// next is. The first failure of a channel ends its turn; and an event waits for
// earlier ones of its peer.
func (n *Notifier) deliver(ctx context.Context) (next time.Duration, err error) {
	lock := n.flock("delivery.lock")
	ours, err := lock.TryLock()
	if err != nil {
		return every, fmt.Errorf("lock deliveries: %w", err)
	}
	if !ours {
		return every, nil
	}
	defer lock.Unlock()
	var b *book
	if err := n.update(ctx, func(stored *book) error {
		stored.keepChannels(n.channels())
		b = stored
		return nil
	}); err != nil {
		return every, err
	}
	type line struct{ channel, peer string }
	failed, waiting := map[string]bool{}, map[line]bool{}
	next = every
	for _, o := range b.Outgoing {
		for _, a := range append([]attempt(nil), o.Left...) {
			l := line{a.Channel, o.Event.Peer}
			if due := a.Next.Sub(n.Now()); due > 0 {
				next = min(next, due)
				waiting[l] = true
			}
			if failed[a.Channel] || waiting[l] {
				waiting[l] = true
				continue
			}
			if ctx.Err() != nil {
				return every, ctx.Err()
			}
			sent, err := n.attempt(ctx, o.Event, a)
			if err != nil {
				return every, err
			}
			if !sent {
				failed[a.Channel], waiting[l] = true, true
				next = min(next, backoff(a.Attempts+1))
			}
		}
	}
	return next, nil
}

// attempt tries one delivery and notes how it ended. An error is that ctx ended,
// or that it could not be noted.
func (n *Notifier) attempt(ctx context.Context, e Event, a attempt) (sent bool, err error) {
	sendErr := n.send(ctx, e, a.Channel)
	if ctx.Err() != nil && sendErr != nil {
		return false, ctx.Err()
	}
	log := n.Log.With("channel", a.Channel, "event", e.Kind, "peer", e.Peer, "id", e.ID)
	a.Attempts++
	a.Error = ""
	if sendErr != nil {
		a.Error = proc.OneLine(sendErr.Error(), maxError)
		wait := backoff(a.Attempts)
		a.Next = n.Now().UTC().Add(wait)
		log.Error("a notification could not be delivered", "again_in", wait, "error", sendErr)
	} else {
		log.Info("told", "text", e.Text)
	}
	return sendErr == nil, n.update(context.WithoutCancel(ctx), func(b *book) error {
		b.settle(e.ID, a)
		return nil
	})
}

func (n *Notifier) send(ctx context.Context, e Event, channel string) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	// Who is told to stop lets a delivery end: one that is cut off may have arrived, and comes again.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), deliveryTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cancel) })()
	if channel == channelCommand {
		return n.runCommand(limited, data)
	}
	return n.post(limited, data)
}

// runCommand runs notify.command. It gets the few variables that jobs of ours hand
// on, and what it prints goes nowhere but into the message of its failure.
func (n *Notifier) runCommand(ctx context.Context, data []byte) error {
	cmd := proc.Command(ctx, proc.Env(), n.Server.Notify.Command...)
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(data)
	_, err := proc.Run(cmd)
	if ctx.Err() != nil && err != nil {
		return fmt.Errorf("%s: no end after %v", n.Server.Notify.Command[0], deliveryTimeout)
	}
	return err
}

// client verifies certificates, as Go's default does; a webhook answers, and
// sends nobody elsewhere: following would turn a POST into a GET, or carry the token away.
var client = &http.Client{
	Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// post posts to notify.webhook. Neither the address, which is a secret with many services, nor
// what is answered, which may repeat the token, is part of an error.
func (n *Notifier) post(ctx context.Context, data []byte) error {
	cfg := n.Server.Notify
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, cfg.Webhook, bytes.NewReader(data))
	if err != nil {
		return errors.New("notify.webhook is not an address that can be posted to")
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "mirror-shell")
	if cfg.WebhookTokenFile != "" {
		token, err := readToken(cfg.WebhookTokenFile)
		if err != nil {
			return fmt.Errorf("notify.webhook_token_file: %w", err)
		}
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := client.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without the address
		}
		return fmt.Errorf("post to %s: %w", request.URL.Host, err)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return fmt.Errorf("%s answers %d %s", request.URL.Host, answer.StatusCode, http.StatusText(answer.StatusCode))
	}
	return nil
}

func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(data) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s does not hold one token: write it on one line", file)
	}
	return token, nil
}
