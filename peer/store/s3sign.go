package store

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// signer signs requests with the credentials of the moment. The client's own keeps for a day the key that it derived
// from a secret, by the name of the access key: a secret that was corrected, or changed under the same
// name, would not count before midnight.
type signer struct {
	mu     sync.Mutex
	secret string
	inner  *v4.Signer
}

// SignHTTP implements s3.HTTPSignerV4.
func (s *signer) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	return s.of(c.SecretAccessKey).SignHTTP(ctx, c, r, hash, service, region, at, options...)
}

func (s *signer) of(secret string) *v4.Signer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inner == nil || s.secret != secret {
		s.secret, s.inner = secret, v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }) // S3's way
	}
	return s.inner
}
