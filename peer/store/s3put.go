package store

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithy "github.com/aws/smithy-go"
	"golang.org/x/sync/errgroup"
)

const (
	partSize    = 8 << 20 // bytes; two are on their way at a time
	maxPartSize = sendMemory
	maxParts    = 10_000 // S3's limit

	// tokenName is the metadata by which a Put knows its own object.
	tokenName = "mirror-shell-put"
)

func (s *s3Store) Put(ctx context.Context, key string, b Blob) error {
	if err := s.put(ctx, key, b); err != nil {
		return s.errorf("put", key, err)
	}
	return nil
}

func (s *s3Store) put(ctx context.Context, key string, b Blob) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	release, err := s.transfer(ctx)
	if err != nil {
		return err
	}
	defer release()
	content, closer, err := b.open()
	if err != nil {
		return err
	}
	defer closer.Close()
	u := upload{s: s, key: key, size: b.Size, content: content, token: rand.Text(), retain: b.Retain}
	if b.Size <= partSize {
		return u.whole(ctx)
	}
	return u.inParts(ctx)
}

// upload is one Put.
//
// Every object gets a random token as metadata. When the answer to a request was lost
// and the repeated one hears that the object exists, the token tells whether the
// first one had made it: then the Put has succeeded, otherwise another writer was faster.
type upload struct {
	s       *s3Store
	key     string
	size    int64
	content io.Reader
	token   string
	retain  time.Time
}

// lock returns mode and end of an object's retention; "" and nil for none.
func (u *upload) lock() (types.ObjectLockMode, *time.Time) {
	if u.s.lockMode == "" || u.retain.IsZero() {
		return "", nil
	}
	return u.s.mode(), aws.Time(wholeSeconds(u.retain))
}

// read fills memory with the next n bytes. What it returns gives the memory back.
func (u *upload) read(ctx context.Context, n int64) (buf []byte, release func(), err error) {
	buf, release, err = u.s.buffer(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	if _, err := io.ReadFull(u.content, buf); err != nil {
		release()
		return nil, nil, err
	}
	return buf, release, nil
}

// buffer waits for n bytes of the memory for uploads. Large buffers are used again.
func (s *s3Store) buffer(ctx context.Context, n int64) (buf []byte, release func(), err error) {
	if n <= 1<<20 || n > partSize {
		err = s.memory.Acquire(ctx, n)
		return make([]byte, n), func() { s.memory.Release(n) }, err
	}
	if err := s.memory.Acquire(ctx, partSize); err != nil {
		return nil, nil, err
	}
	whole := s.buffers.get()
	return whole[:n], func() {
		s.buffers.put(whole)
		s.memory.Release(partSize)
	}, nil
}

// finished fails unless the content has ended where it should.
func (u *upload) finished() error {
	if _, err := u.content.Read(make([]byte, 1)); err != io.EOF {
		return err
	}
	return nil
}

// whole sends a small blob in one request.
func (u *upload) whole(ctx context.Context) error {
	buf, release, err := u.read(ctx, u.size)
	if err != nil {
		return err
	}
	defer release()
	if err := u.finished(); err != nil {
		return err
	}
	mode, until := u.lock()
	return u.s.try(ctx, "put "+u.key, func(ctx context.Context, attempt int) error {
		_, err := u.s.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &u.s.bucket, Key: u.s.object(u.key), Body: bytes.NewReader(buf), IfNoneMatch: aws.String("*"),
			ContentMD5: contentMD5(buf), Metadata: map[string]string{tokenName: u.token},
			ObjectLockMode: mode, ObjectLockRetainUntilDate: until,
		})
		return u.settle(ctx, attempt, err)
	})
}

// settle finds out who made an object that exists, when an earlier attempt may have.
func (u *upload) settle(ctx context.Context, attempt int, err error) error {
	if err == nil || attempt == 0 {
		return err
	}
	judged, _ := judge(err)
	if !errors.Is(judged, ErrExists) {
		return err
	}
	ours, herr := u.published(ctx)
	if gone, _ := judgeNil(herr); errors.Is(gone, fs.ErrNotExist) {
		return &refusal{status: http.StatusConflict, code: "deleted in the meantime", again: true}
	}
	if herr != nil || ours {
		return herr
	}
	return judged
}

// published reports whether the key's object is the one that this upload made.
func (u *upload) published(ctx context.Context) (bool, error) {
	head, err := u.s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &u.s.bucket, Key: u.s.object(u.key)})
	if err != nil {
		return false, err
	}
	return head.Metadata[tokenName] == u.token && aws.ToInt64(head.ContentLength) == u.size, nil
}

func contentMD5(p []byte) *string {
	sum := md5.Sum(p)
	return aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

// inParts sends a large blob in a multipart upload, which is nowhere to be seen until its last
// request.
func (u *upload) inParts(ctx context.Context) (err error) {
	size := int64(partSize)
	if u.size > size*maxParts {
		size = maxPartSize
	}
	if u.size > size*maxParts {
		return fmt.Errorf("a blob of %d bytes is too large: at most %d are possible", u.size, int64(maxPartSize)*maxParts)
	}
	id, err := u.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			u.abort(ctx, id)
		}
	}()
	parts, err := u.sendParts(ctx, id, size)
	if err != nil {
		return err
	}
	if err := u.finished(); err != nil {
		return err
	}
	return u.complete(ctx, id, parts)
}

func (u *upload) begin(ctx context.Context) (id *string, err error) {
	mode, until := u.lock()
	err = u.s.try(ctx, "begin the upload of "+u.key, func(ctx context.Context, _ int) error {
		out, err := u.s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
			Bucket: &u.s.bucket, Key: u.s.object(u.key), Metadata: map[string]string{tokenName: u.token},
			ObjectLockMode: mode, ObjectLockRetainUntilDate: until,
		})
		if err == nil {
			id = out.UploadId
		}
		return err
	})
	return id, err
}

// sendParts sends the content in parts of size bytes, the last one shorter. Each is read
// when there is memory for it, so that the store's memory is the limit for
// how many are on their way.
func (u *upload) sendParts(ctx context.Context, id *string, size int64) ([]types.CompletedPart, error) {
	parts := make([]types.CompletedPart, (u.size+size-1)/size)
	group, gctx := errgroup.WithContext(ctx)
	for i := range parts {
		buf, release, err := u.read(gctx, min(size, u.size-int64(i)*size))
		if err != nil {
			// When a part has failed, that is why: Wait returns the first error.
			group.Go(func() error { return err })
			break
		}
		group.Go(func() error {
			defer release()
			return u.sendPart(gctx, id, &parts[i], int32(i+1), buf)
		})
	}
	return parts, group.Wait()
}

func (u *upload) sendPart(ctx context.Context, id *string, part *types.CompletedPart, number int32, buf []byte) error {
	sum := contentMD5(buf)
	return u.s.try(ctx, fmt.Sprintf("send part %d of %s", number, u.key), func(ctx context.Context, _ int) error {
		out, err := u.s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &u.s.bucket, Key: u.s.object(u.key), UploadId: id, PartNumber: &number,
			Body: bytes.NewReader(buf), ContentMD5: sum,
		})
		if err == nil {
			*part = types.CompletedPart{PartNumber: &number, ETag: out.ETag}
		}
		return err
	})
}

// complete publishes the blob. When an earlier attempt did, the upload is gone (NoSuchUpload) or the
// object exists.
func (u *upload) complete(ctx context.Context, id *string, parts []types.CompletedPart) error {
	return u.s.try(ctx, "publish "+u.key, func(ctx context.Context, attempt int) error {
		_, err := u.s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &u.s.bucket, Key: u.s.object(u.key), UploadId: id, IfNoneMatch: aws.String("*"),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
		if attempt == 0 || !isNoSuchUpload(err) {
			return u.settle(ctx, attempt, err)
		}
		ours, herr := u.published(ctx)
		if gone, _ := judgeNil(herr); errors.Is(gone, fs.ErrNotExist) || herr == nil && !ours {
			return &refusal{status: http.StatusNotFound, code: "NoSuchUpload", hint: "somebody has aborted the upload"}
		}
		return herr
	})
}

// abort frees the parts of an upload that failed, also when that is because ctx ended.
func (u *upload) abort(ctx context.Context, id *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := u.s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &u.s.bucket, Key: u.s.object(u.key), UploadId: id})
	if judged, _ := judgeNil(err); judged != nil && !isNoSuchUpload(err) {
		u.s.log.Warn("parts of a failed upload are left in the bucket", "key", u.key, "error", judged)
	}
}

// isNoSuchUpload reports whether the server says that an upload is over, or never was.
func isNoSuchUpload(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "NoSuchUpload"
}

func judgeNil(err error) (error, bool) {
	if err == nil {
		return nil, false
	}
	return judge(err)
}
