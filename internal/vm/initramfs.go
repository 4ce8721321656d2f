package vm

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// File is one entry of an initramfs.
type File struct {
	// Path is absolute. Folders on the way to it need no entries of their own.
	Path string
	// Mode holds permissions; of the types regular files, folders and symbolic
	// links are known.
	Mode fs.FileMode
	// Content is the file's, or the link's target.
	Content []byte
}

// WriteInitramfs writes files as a cpio archive in the "newc" format, in which the
// kernel wants its initramfs (Documentation/driver-api/early-userspace/buffer-format.rst),
// uncompressed: unpacking is what takes time under emulation.
func WriteInitramfs(w io.Writer, files []File) error {
	var out bytes.Buffer
	inode := 0
	done := map[string]bool{"/": true, ".": true}
	add := func(f File) {
		if f.Mode.IsDir() && done[f.Path] {
			return
		}
		done[f.Path] = true
		inode++
		writeEntry(&out, inode, f)
	}
	for _, f := range files {
		for _, dir := range parents(f.Path) {
			add(File{Path: dir, Mode: fs.ModeDir | 0o755})
		}
		add(f)
	}
	writeEntry(&out, 0, File{Path: "/TRAILER!!!"})
	if _, err := w.Write(out.Bytes()); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

// parents lists the folders above p, outermost first.
func parents(p string) []string {
	var dirs []string
	for dir := path.Dir(p); dir != "/" && dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}

func writeEntry(out *bytes.Buffer, inode int, f File) {
	const sIFREG, sIFDIR, sIFLNK = 0o100000, 0o040000, 0o120000
	mode := uint32(f.Mode.Perm())
	switch {
	case f.Mode.IsDir():
		mode |= sIFDIR
	case f.Mode&fs.ModeSymlink != 0:
		mode |= sIFLNK
	default:
		mode |= sIFREG
	}
	name := strings.TrimPrefix(f.Path, "/")
	// Magic, then 13 numbers of 8 hex digits: inode, mode, uid, gid, links, mtime,
	// size, device and special device as major and minor, name size, checksum.
	fmt.Fprintf(out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, mode, 0, 0, 1, 0, len(f.Content), 0, 0, 0, 0, len(name)+1, 0)
	out.WriteString(name + "\x00")
	pad(out)
	out.Write(f.Content)
	pad(out)
}

// pad fills up to a multiple of four.
func pad(out *bytes.Buffer) {
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
}
