package git

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// TreeFile is one file of a commit.
type TreeFile struct {
	Path string // slash-separated, relative to the directory asked for
	Data []byte
	Err  error // why it was not read; Data is nil
}

var errNotPlain = errors.New("not a plain file")

// TreeFiles reads all files of HEAD's commit below dir (slash-separated), sorted by path,
// with two processes however many they are. Links, submodules and files of more than
// maxSize bytes are given with an error of their own. No file at all is no error; more
// than maxFiles are one, and a repository without a commit is fs.ErrNotExist.
func (r Repo) TreeFiles(ctx context.Context, dir string, maxFiles int, maxSize int64) ([]TreeFile, error) {
	commit, err := r.headCommit(ctx)
	if err != nil {
		return nil, err
	}
	listing, err := r.listTree(ctx, "-r", "-l", "-z", "--full-tree", commit)
	if err != nil {
		return nil, err
	}
	var files []TreeFile
	var oids []string // of files, in their order; "" for one that is not read
	for item := range strings.SplitSeq(listing, "\x00") {
		about, name, ok := strings.Cut(item, "\t") // MODE SP TYPE SP OID SP SIZE TAB PATH
		fields := strings.Fields(about)
		name, below := strings.CutPrefix(name, dir+"/")
		if !ok || !below || len(fields) != 4 {
			continue
		}
		if len(files) == maxFiles {
			return nil, fmt.Errorf("%s: more than %d files", dir, maxFiles)
		}
		file, oid := TreeFile{Path: name}, ""
		switch size, err := strconv.ParseInt(fields[3], 10, 64); {
		case err != nil || !strings.HasPrefix(fields[0], "100"):
			file.Err = errNotPlain
		case size > maxSize:
			file.Err = errTooLong
		default:
			oid = fields[2]
		}
		files, oids = append(files, file), append(oids, oid)
	}
	return files, r.readBlobs(ctx, files, oids)
}

// readBlobs fills in the data of the files that have an object id.
func (r Repo) readBlobs(ctx context.Context, files []TreeFile, oids []string) error {
	asked := slices.DeleteFunc(slices.Clone(oids), func(oid string) bool { return oid == "" })
	if len(asked) == 0 {
		return nil
	}
	var out bytes.Buffer
	if _, err := r.run(ctx, lines(asked, ""), &out, "cat-file", "--batch", "--buffer"); err != nil {
		return err
	}
	in := bufio.NewReader(&out)
	for i, oid := range oids {
		if oid == "" {
			continue
		}
		header, err := in.ReadString('\n') // OID SP TYPE SP SIZE, or OID SP missing
		fields := strings.Fields(header)
		if err != nil || len(fields) < 2 || fields[0] != oid {
			return fmt.Errorf("git cat-file answers %q for %s", header, oid)
		}
		if len(fields) != 3 {
			files[i].Err = errors.New("its object is missing: run git fsck")
			continue
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil || size > int64(in.Buffered()+out.Len()) {
			return fmt.Errorf("git cat-file answers %q for %s", header, oid)
		}
		files[i].Data = make([]byte, size)
		if _, err := io.ReadFull(in, files[i].Data); err != nil {
			return err
		}
		if _, err := in.Discard(1); err != nil { // the LF after it
			return err
		}
	}
	return nil
}
