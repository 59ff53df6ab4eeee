package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// refusal is a server's answer that is an error.
type refusal struct {
	status  int    // HTTP's
	code    string // S3's, as NoSuchKey; may be empty
	message string
	err     error // what a caller can tell apart; nil: nothing special
	hint    string
	again   bool // the same request may succeed later
}

func (r *refusal) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("the server answers %d %s", r.status, quote(r.code)))
	if r.message != "" {
		text += " (" + quote(r.message) + ")"
	}
	if r.err != nil {
		text = r.err.Error() + ": " + text
	}
	if r.hint != "" {
		text += ": " + r.hint
	}
	return text
}

func (r *refusal) Unwrap() error { return r.err }

// quote makes a server's text fit for one line of a log, at most 200 bytes.
func quote(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool {
		return r == ' ' || !unicode.IsGraphic(r)
	}), " ")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// known are the codes that mean something to us.
var known = map[string]refusal{
	"NoSuchKey":          {err: fs.ErrNotExist},
	"NotFound":           {err: fs.ErrNotExist},
	"NoSuchVersion":      {err: fs.ErrNotExist},
	"NoSuchBucket":       {err: ErrDenied, hint: "make the bucket, or correct its name or the region in the store's URL"},
	"PreconditionFailed": {err: ErrExists},

	"InvalidAccessKeyId":           {err: ErrDenied, hint: "the server does not know this access key: correct the credentials"},
	"XAdminUserNotFound":           {err: ErrDenied, hint: "the server does not know this access key: correct the credentials"}, // versitygw's word for it
	"SignatureDoesNotMatch":        {err: ErrDenied, hint: "the secret does not belong to the access key: correct the credentials"},
	"ExpiredToken":                 {err: ErrDenied, hint: "the credentials have expired: renew them"},
	"ExpiredTokenException":        {err: ErrDenied, hint: "the credentials have expired: renew them"},
	"TokenRefreshRequired":         {err: ErrDenied, hint: "the credentials have expired: renew them"},
	"InvalidToken":                 {err: ErrDenied, hint: "the session token is wrong: renew the credentials"},
	"RequestTimeTooSkewed":         {err: ErrDenied, hint: "this machine's clock is wrong"},
	"AuthorizationHeaderMalformed": {err: ErrDenied, hint: "the region in the store's URL is probably wrong"},
	"PermanentRedirect":            {err: ErrDenied, hint: "the bucket is elsewhere: correct the region or the endpoint in the store's URL"},
	"AccessDenied":                 {err: ErrDenied, hint: "give these credentials the right to do this"},

	"ConditionalRequestConflict": {again: true}, // another writer of the same key is at it
	"OperationAborted":           {again: true},
	"RequestTimeout":             {again: true},
	"SlowDown":                   {again: true},
	"InternalError":              {again: true},
	"ServiceUnavailable":         {again: true},
	"IncompleteBody":             {again: true}, // cut on the way, and a proxy hid it
	"BadDigest":                  {again: true}, // changed on the way
	"XAmzContentSHA256Mismatch":  {again: true},
}

// judge turns what the client returns into an error of ours, and says whether the same
// request may succeed later.
func judge(err error) (_ error, again bool) {
	var own *refusal
	if errors.As(err, &own) {
		return own, own.again
	}
	for _, sentinel := range []error{ErrDenied, ErrExists, ErrLocked} {
		if errors.Is(err, sentinel) {
			return credentialsError(err), false
		}
	}
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.HTTPStatusCode() == 0 {
		return judgeSilence(err)
	}
	r := refusal{}
	var api smithy.APIError
	if errors.As(err, &api) {
		r = known[api.ErrorCode()]
		r.code, r.message = api.ErrorCode(), api.ErrorMessage()
		if r.code == "InvalidRequest" && strings.Contains(strings.ReplaceAll(r.message, " ", ""), "ObjectLock") {
			r.err, r.hint = ErrDenied, "the bucket has no object lock: make one that has, or leave the lock mode away"
		}
	}
	r.status = answer.HTTPStatusCode()
	if r.err == nil && !r.again {
		r.judgeStatus()
	}
	return &r, r.again
}

// judgeStatus judges by the status alone: a code that we do not know, or none, as in
// answers to HEAD.
func (r *refusal) judgeStatus() {
	switch s := r.status; {
	case s == http.StatusNotFound && r.code == "":
		r.err = fs.ErrNotExist
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		*r = refusal{status: s, code: r.code, message: r.message, err: ErrDenied, hint: known["AccessDenied"].hint}
	case s >= 300 && s < 400:
		r.err, r.hint = ErrDenied, known["PermanentRedirect"].hint
	case s == http.StatusTooManyRequests || s == http.StatusRequestTimeout || s >= 500 && s != http.StatusNotImplemented:
		r.again = true
	case s == http.StatusOK: // an error in the body of a good answer
		r.again = true
	}
}

// judgeSilence is for requests without an answer.
func judgeSilence(err error) (error, bool) {
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return fmt.Errorf("%w: its certificate is not trusted: %w", ErrUnreachable, cert), false
	}
	return innermost(err), true
}

// innermost leaves away what the client wraps around an error (operation, endpoint,
// attempts), which says nothing to people.
func innermost(err error) error {
	var send *smithyhttp.RequestSendError
	if errors.As(err, &send) {
		err = send.Err
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err
		}
		return err
	}
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// credentialsError finds our own error below the client's words.
func credentialsError(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		if strings.HasPrefix(next.Error(), ErrDenied.Error()) {
			return next
		}
	}
	return err
}

// try does something until it succeeds, fails for good, or has failed too often. f is
// told the attempt's number, from 0.
func (s *s3Store) try(ctx context.Context, what string, f func(ctx context.Context, attempt int) error) error {
	for attempt := 0; ; attempt++ {
		err := f(ctx, attempt)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err, again := judge(err)
		if !again {
			return err
		}
		if attempt+1 >= s.attempts {
			return fmt.Errorf("%w: after %d attempts: %w", ErrUnreachable, attempt+1, err)
		}
		wait := max(backoff(attempt), retryAfter(err))
		s.log.Warn("the store failed; trying again", "what", what, "bucket", s.bucket, "error", err, "attempt", attempt+1, "wait", wait)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// backoff returns how long to wait after an attempt: about 0.15, 0.3, 0.6 s, up to 10 s, by chance
// half of it more or less, so that clients that failed together do not come back together.
func backoff(attempt int) time.Duration {
	full := min(200*time.Millisecond<<min(attempt, 10), 10*time.Second)
	return full/2 + rand.N(full/2)
}

// retryAfter is what the server asks for, within reason.
func retryAfter(err error) time.Duration {
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.HTTPStatusCode() == 0 {
		return 0
	}
	seconds, _ := strconv.Atoi(answer.Response.Header.Get("Retry-After"))
	return time.Duration(max(0, min(seconds, 30))) * time.Second
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
