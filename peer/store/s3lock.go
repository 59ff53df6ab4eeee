package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func (s *s3Store) Delete(ctx context.Context, key string) error {
	err := CheckKey(key)
	if err == nil {
		err = s.deleteVersions(ctx, key)
	}
	if err != nil {
		return s.errorf("delete", key, err)
	}
	return nil
}

// deleteVersions removes all that there is of a key, the oldest first, so that it stays
// whole when one is refused.
func (s *s3Store) deleteVersions(ctx context.Context, key string) error {
	ids, err := s.versions(ctx, key)
	if err != nil {
		return err
	}
	for _, id := range slices.Backward(ids) {
		err := s.try(ctx, "delete "+key, func(ctx context.Context, _ int) error {
			_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.object(key), VersionId: id})
			return err
		})
		if errors.Is(err, ErrDenied) && s.locked(ctx, key, id) {
			return ErrLocked
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// versions returns the ids of a key's versions and delete markers, the newest
// first. A server that has no versions has one of the id nil.
func (s *s3Store) versions(ctx context.Context, key string) (ids []*string, err error) {
	in := &s3.ListObjectVersionsInput{Bucket: &s.bucket, Prefix: s.object(key)}
	for {
		var page *s3.ListObjectVersionsOutput
		err := s.try(ctx, "list versions of "+key, func(ctx context.Context, _ int) (err error) {
			page, err = s.client.ListObjectVersions(ctx, in)
			return err
		})
		var r *refusal
		if errors.As(err, &r) && (r.status == http.StatusNotImplemented || r.status == http.StatusMethodNotAllowed) {
			return []*string{nil}, nil
		}
		if err != nil {
			return nil, err
		}
		more := appendVersions(&ids, page, *s.object(key))
		if !more || !aws.ToBool(page.IsTruncated) {
			return ids, nil
		}
		in.KeyMarker, in.VersionIdMarker = page.NextKeyMarker, page.NextVersionIdMarker
	}
}

// appendVersions adds what a page has of one object, by time, and reports whether the next page may have
// more: the prefix asked for also fits longer keys, which come later.
func appendVersions(ids *[]*string, page *s3.ListObjectVersionsOutput, object string) (more bool) {
	type version struct {
		id *string
		at time.Time
	}
	var all []version
	more = true
	for _, v := range page.Versions {
		if aws.ToString(v.Key) == object {
			all = append(all, version{v.VersionId, aws.ToTime(v.LastModified)})
		}
		more = more && aws.ToString(v.Key) <= object
	}
	for _, m := range page.DeleteMarkers {
		if aws.ToString(m.Key) == object {
			all = append(all, version{m.VersionId, aws.ToTime(m.LastModified)})
		}
		more = more && aws.ToString(m.Key) <= object
	}
	slices.SortStableFunc(all, func(a, b version) int { return b.at.Compare(a.at) })
	for _, v := range all {
		*ids = append(*ids, v.id)
	}
	return more
}

// locked reports whether a version is retained, or held for legal reasons: S3
// refuses to delete it with the same words as for a missing right.
func (s *s3Store) locked(ctx context.Context, key string, id *string) bool {
	until, _, err := s.retention(ctx, key, id)
	if err == nil && until.After(time.Now()) {
		return true
	}
	hold, err := s.client.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &s.bucket, Key: s.object(key), VersionId: id})
	return err == nil && hold.LegalHold != nil && hold.LegalHold.Status == types.ObjectLockLegalHoldStatusOn
}

// retention returns until when an object is retained, and how; zero and "": it is not. A
// nil id is the newest version.
func (s *s3Store) retention(ctx context.Context, key string, id *string) (until time.Time, mode types.ObjectLockRetentionMode, err error) {
	err = s.try(ctx, "retention of "+key, func(ctx context.Context, _ int) error {
		out, err := s.client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &s.bucket, Key: s.object(key), VersionId: id})
		if err == nil && out.Retention != nil {
			until, mode = aws.ToTime(out.Retention.RetainUntilDate), out.Retention.Mode
		}
		return err
	})
	var r *refusal
	if errors.As(err, &r) && r.code == "NoSuchObjectLockConfiguration" {
		return time.Time{}, "", nil
	}
	return until, mode, err
}

// mode is LockMode in S3's words; the words for an object and for a change of it are the same.
func (s *s3Store) mode() types.ObjectLockMode {
	return types.ObjectLockMode(strings.ToUpper(s.lockMode))
}

// wholeSeconds rounds up: S3 keeps no fractions.
func wholeSeconds(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); !whole.Equal(t) {
		return whole.Add(time.Second).UTC()
	}
	return t.UTC()
}

// lockStore is an s3Store whose blobs are locked.
type lockStore struct{ *s3Store }

// Retain extends an object's lock in the mode that it has: an administrator who changed
// LockMode in between may be neither allowed nor willing to change old blobs.
func (s *lockStore) Retain(ctx context.Context, key string, until time.Time) error {
	if err := s.extend(ctx, key, wholeSeconds(until)); err != nil {
		return s.errorf("retain", key, err)
	}
	return nil
}

func (s *lockStore) extend(ctx context.Context, key string, until time.Time) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	now, mode, err := s.retention(ctx, key, nil)
	if err != nil || !now.Before(until) {
		return err
	}
	if mode == "" {
		mode = types.ObjectLockRetentionMode(s.mode())
	}
	return s.try(ctx, "retain "+key, func(ctx context.Context, _ int) error {
		_, err := s.client.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{
			Bucket: &s.bucket, Key: s.object(key),
			Retention: &types.ObjectLockRetention{Mode: mode, RetainUntilDate: aws.Time(until)},
		})
		return err
	})
}

func (s *lockStore) Retained(ctx context.Context, key string) (time.Time, error) {
	err := CheckKey(key)
	var until time.Time
	if err == nil {
		until, _, err = s.retention(ctx, key, nil)
	}
	if err != nil {
		return time.Time{}, s.errorf("read the retention of", key, fmt.Errorf("%w", err))
	}
	return until, nil
}
