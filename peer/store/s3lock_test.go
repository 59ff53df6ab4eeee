package store_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

// A delete leaves no version and no marker, also where others have made some.
func TestS3DeleteVersions(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	bucket := server.Bucket(t, true)
	s, client := server.Open(t, bucket, store.Options{}), server.Client()
	for range 2 {
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("k"), Body: strings.NewReader("x")}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("k")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := storetest.Read(t.Context(), s, "k"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below a delete marker: %v", err)
	}
	if err := s.Put(t.Context(), "k2", storetest.Bytes([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "k", storetest.Bytes([]byte("new"))); err != nil {
		t.Fatal(err)
	}
	out, err := client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket})
	if err != nil || len(out.Versions) != 2 || len(out.DeleteMarkers) != 0 {
		t.Errorf("%d versions and %d markers are left, %v; want k2 and the new one", len(out.Versions), len(out.DeleteMarkers), err)
	}
}

// Governance is the other lock: without a special right it refuses just as well.
func TestS3Governance(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	bucket := server.Bucket(t, true)
	s := server.Open(t, bucket, store.Options{LockMode: "governance"})
	b := storetest.Bytes([]byte("x"))
	b.Retain = time.Now().Add(time.Hour)
	if err := s.Put(t.Context(), "k", b); err != nil {
		t.Fatal(err)
	}
	if err := s.(store.Retainer).Retain(t.Context(), "k", b.Retain.Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if until, err := s.(store.Retainer).Retained(t.Context(), "k"); err != nil || until.Before(b.Retain.Add(time.Hour)) {
		t.Errorf("retained until %v, %v", until, err)
	}
	// Also for a store that itself locks nothing.
	plain := server.Open(t, bucket, store.Options{})
	if err := plain.Delete(t.Context(), "k"); !errors.Is(err, store.ErrLocked) {
		t.Errorf("delete: %v, want that it is locked", err)
	}
}

// A bucket without object lock says so at the first blob that is to be retained.
func TestS3WithoutLock(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	s := server.Open(t, server.Bucket(t, false), store.Options{LockMode: "compliance"})
	b := storetest.Bytes([]byte("x"))
	b.Retain = time.Now().Add(time.Hour)
	err := s.Put(t.Context(), "k", b)
	if !errors.Is(err, store.ErrDenied) || !strings.Contains(err.Error(), "the bucket has no object lock") {
		t.Errorf("%v, want that the bucket has no lock", err)
	}
	if _, err := s.(store.Retainer).Retained(t.Context(), "k"); !errors.Is(err, store.ErrDenied) {
		t.Errorf("%v, want that the bucket has no lock", err)
	}
}
