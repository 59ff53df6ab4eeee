package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func (s *s3Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.get(ctx, key, offset, length)
	if err != nil {
		return nil, s.errorf("get", key, err)
	}
	return r, nil
}

func (s *s3Store) get(ctx context.Context, key string, offset, length int64) (_ *s3Reader, err error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if offset < 0 || length > math.MaxInt64-offset {
		return nil, fmt.Errorf("a read of %d bytes from %d on cannot be", length, offset)
	}
	release, err := s.transfer(ctx)
	if err != nil {
		return nil, err
	}
	r := &s3Reader{ctx: ctx, s: s, key: key, next: offset, end: -1, release: release}
	if length >= 0 {
		r.end = offset + length
	}
	err = s.try(ctx, "get "+key, func(context.Context, int) error {
		if length == 0 {
			return r.measure()
		}
		return r.connect()
	})
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusRequestedRangeNotSatisfiable {
		err = s.try(ctx, "get "+key, func(context.Context, int) error { return r.measure() })
	}
	if err != nil {
		release()
		return nil, err
	}
	return r, nil
}

// s3Reader reads the bytes from next to end of an object, over as many connections as
// it takes.
type s3Reader struct {
	ctx       context.Context
	s         *s3Store
	key       string
	next, end int64  // end is -1 until the first answer when all is wanted
	etag      string // of the first answer: the others have to be of the same object
	body      io.ReadCloser
	failures  int // since the last byte
	err       error
	release   func()
}

// connect asks for what is still wanted, and checks that the answer is that.
func (r *s3Reader) connect() error {
	in := &s3.GetObjectInput{Bucket: &r.s.bucket, Key: r.s.object(r.key)}
	switch {
	case r.end >= 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", r.next, r.end-1))
	case r.next > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", r.next))
	}
	if r.etag != "" {
		in.IfMatch = &r.etag
	}
	out, err := r.s.client.GetObject(r.ctx, in)
	if err != nil {
		return err
	}
	if err := r.accept(in.Range != nil, out); err != nil {
		out.Body.Close()
		return err
	}
	r.body, r.etag = out.Body, aws.ToString(out.ETag)
	return nil
}

// accept checks an answer's range: a server that ignores ours sends the wrong bytes.
func (r *s3Reader) accept(ranged bool, out *s3.GetObjectOutput) error {
	if !ranged {
		if out.ContentLength == nil || *out.ContentLength < 0 {
			return &refusal{status: http.StatusOK, message: "no Content-Length"}
		}
		r.end = *out.ContentLength
		return nil
	}
	first, last, size, ok := parseContentRange(aws.ToString(out.ContentRange))
	if !ok || first != r.next {
		return &refusal{status: http.StatusOK, message: fmt.Sprintf("the range %q for one from %d on", aws.ToString(out.ContentRange), r.next)}
	}
	if r.end < 0 {
		r.end = size
	}
	if _, err := rangeEnd(size, r.next, r.end-r.next); err != nil {
		return &refusal{status: http.StatusPartialContent, err: err}
	}
	if last != r.end-1 {
		return &refusal{status: http.StatusPartialContent, message: fmt.Sprintf("the range %q for one up to %d", aws.ToString(out.ContentRange), r.end)}
	}
	return nil
}

// parseContentRange reads "bytes FIRST-LAST/SIZE".
func parseContentRange(s string) (first, last, size int64, ok bool) {
	rest, found := strings.CutPrefix(s, "bytes ")
	span, total, found2 := strings.Cut(rest, "/")
	from, to, found3 := strings.Cut(span, "-")
	if !found || !found2 || !found3 {
		return 0, 0, 0, false
	}
	var errs [3]error
	first, errs[0] = strconv.ParseInt(from, 10, 64)
	last, errs[1] = strconv.ParseInt(to, 10, 64)
	size, errs[2] = strconv.ParseInt(total, 10, 64)
	return first, last, size, errors.Join(errs[:]...) == nil && 0 <= first && first <= last && last < size
}

// measure is for a read of nothing, which no range can ask for: the blob must be there
// and reach that far.
func (r *s3Reader) measure() error {
	head, err := r.s.client.HeadObject(r.ctx, &s3.HeadObjectInput{Bucket: &r.s.bucket, Key: r.s.object(r.key)})
	if err != nil {
		return err
	}
	if r.end < 0 {
		r.end = aws.ToInt64(head.ContentLength)
	}
	if _, err := rangeEnd(aws.ToInt64(head.ContentLength), r.next, r.end-r.next); err != nil || r.next > r.end {
		return &refusal{status: http.StatusRequestedRangeNotSatisfiable, err: errors.Join(err, io.ErrUnexpectedEOF)}
	}
	if r.next < r.end {
		return &refusal{status: http.StatusRequestedRangeNotSatisfiable, message: "for a range that the object has"}
	}
	return nil
}

func (r *s3Reader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.next == r.end:
			r.finish()
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.next)])
		r.next += int64(n)
		if n > 0 {
			r.failures = 0
			return n, nil // an error comes again, or the next read is another connection's
		}
		if err != nil {
			r.err = r.resume(err)
		}
	}
}

// resume connects again after a read failed, and returns an error when it cannot.
func (r *s3Reader) resume(cut error) error {
	if cut == io.EOF {
		cut = io.ErrUnexpectedEOF
	}
	r.body.Close()
	for {
		if r.ctx.Err() != nil {
			return r.s.errorf("get", r.key, context.Cause(r.ctx))
		}
		r.failures++
		if r.failures >= r.s.attempts {
			return r.s.errorf("get", r.key, fmt.Errorf("%w: after %d attempts at byte %d: %w", ErrUnreachable, r.failures, r.next, cut))
		}
		r.s.log.Warn("a read broke off; going on", "key", r.key, "byte", r.next, "bucket", r.s.bucket, "error", cut)
		if err := sleep(r.ctx, backoff(r.failures-1)); err != nil {
			return r.s.errorf("get", r.key, err)
		}
		err := r.connect()
		if err == nil {
			return nil
		}
		judged, again := judge(err)
		if errors.Is(judged, ErrExists) { // If-Match did not
			judged = errors.New("the blob has been replaced by another while it was read")
		}
		if !again {
			return r.s.errorf("get", r.key, fmt.Errorf("go on at byte %d: %w", r.next, judged))
		}
		cut = judged
	}
}

func (r *s3Reader) finish() {
	if r.body != nil {
		r.body.Close()
	}
	r.release()
}

func (r *s3Reader) Close() error {
	r.finish()
	if r.err == nil {
		r.err = fs.ErrClosed
	}
	return nil
}

// pageSize is how many blobs one request lists at most.
const pageSize = 1000

func (s *s3Store) List(ctx context.Context, prefix, after string, limit int) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var token *string
		for seen := 0; ; {
			page, err := s.page(ctx, prefix, after, token, limit-seen)
			if err != nil {
				yield(Info{}, s.errorf("list", prefix, err))
				return
			}
			for _, object := range page.Contents {
				key := strings.TrimPrefix(aws.ToString(object.Key), s.prefix)
				if CheckKey(key) != nil {
					continue // nothing of ours
				}
				if key <= after || !strings.HasPrefix(key, prefix) {
					yield(Info{}, s.errorf("list", prefix, fmt.Errorf("the server lists %q after %q: it does not keep to the order of bytes", key, after)))
					return
				}
				after = key
				info := Info{Key: key, Size: aws.ToInt64(object.Size), Time: aws.ToTime(object.LastModified)}
				if seen++; !yield(info, nil) || seen == limit {
					return
				}
			}
			if token = page.NextContinuationToken; token == nil || !aws.ToBool(page.IsTruncated) {
				return
			}
		}
	}
}

// page asks for one page of a listing: want keys, or a thousand.
func (s *s3Store) page(ctx context.Context, prefix, after string, token *string, want int) (page *s3.ListObjectsV2Output, err error) {
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: s.object(prefix), MaxKeys: aws.Int32(pageSize), ContinuationToken: token}
	if want > 0 && want < pageSize {
		in.MaxKeys = aws.Int32(int32(want))
	}
	if after != "" && token == nil {
		in.StartAfter = s.object(after)
	}
	err = s.try(ctx, "list "+prefix, func(ctx context.Context, _ int) error {
		page, err = s.client.ListObjectsV2(ctx, in)
		return err
	})
	return page, err
}
