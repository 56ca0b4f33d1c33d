// Checks an exported or a served log with Go's golang.org/x/mod/sumdb packages, which share no code with fieldprint, and
// makes proofs and a witness's cosignature for fieldprint to check.
//
// usage: go run log_client.go EXPORT LEDGER.PUB PROOFS.JSONL OUTPUT
//
//	go run log_client.go URL LEDGER.PUB CHECKPOINTS
//
// PROOFS.JSONL holds what `fieldprint ledger prove --json` printed. OUTPUT is a folder for the proofs made here
// (go-N.json), and for witness.pub and cosigned. Of the log at a URL so many checkpoints are read, each larger than
// the one before, and then all of its records.
package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "log_client:", err)
		os.Exit(1)
	}
}

func fail(format string, arguments ...interface{}) { must(fmt.Errorf(format, arguments...)) }

// Where a log's resources are read.
type source interface {
	read(name string) ([]byte, error)
}

type folder string

func (f folder) read(name string) ([]byte, error) { return os.ReadFile(filepath.Join(string(f), name)) }

// A log's URL.
type server struct {
	prefix string
	client http.Client
}

func (s *server) read(name string) ([]byte, error) {
	answer, err := s.client.Get(s.prefix + "/" + name)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	kind, caching := "application/octet-stream", "immutable"
	if name == "checkpoint" {
		kind, caching = "text/plain; charset=utf-8", "no-cache"
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", name, answer.Status)
	}
	if answer.Header.Get("Content-Type") != kind || !strings.Contains(answer.Header.Get("Cache-Control"), caching) {
		return nil, fmt.Errorf("%s came with %v", name, answer.Header)
	}
	return body, nil
}

// Tiles of c2sp.org/tlog-tiles: Go's paths without the height.
type tiles struct{ from source }

func (t tiles) Height() int                     { return tileHeight }
func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func path(tile tlog.Tile) string {
	path := strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	return "tile/" + strings.Replace(path, "data/", "entries/", 1)
}

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		data, err := t.from.read(path(tile))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

// The checkpoint's text and tree, if the log's key signed it.
func openCheckpoint(from source, vkey string) (string, tlog.Tree) {
	verifier, err := note.NewVerifier(vkey)
	must(err)
	signed, err := from.read("checkpoint")
	must(err)
	opened, err := note.Open(signed, note.VerifierList(verifier))
	must(err)
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		fail("the origin is %q, the key's name %q", lines[0], verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	root, err := tlog.ParseHash(lines[2])
	must(err)
	return opened.Text, tlog.Tree{N: size, Hash: root}
}

// The hashes of the records in the bundle that begins with record `first`, as far as the tree goes.
func readBundle(from source, tree tlog.Tree, first int64) []tlog.Hash {
	width := tree.N - first
	if width > 1<<tileHeight {
		width = 1 << tileHeight
	}
	name := path(tlog.Tile{H: tileHeight, L: -1, N: first >> tileHeight, W: int(width)})
	bundle, err := from.read(name)
	must(err)
	var records []tlog.Hash
	for i := int64(0); i < width; i++ {
		if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
			fail("%s is cut", name)
		}
		end := 2 + int(binary.BigEndian.Uint16(bundle))
		records = append(records, tlog.RecordHash(bundle[2:end]))
		bundle = bundle[end:]
	}
	if len(bundle) != 0 {
		fail("%s goes on", name)
	}
	return records
}

// Reads every record and compares its hash with the tiles, which Go checks against the checkpoint.
func checkRecords(from source, tree tlog.Tree, hashes tlog.HashReader) []tlog.Hash {
	var records []tlog.Hash
	for first := int64(0); first < tree.N; first += 1 << tileHeight {
		bundle := readBundle(from, tree, first)
		var indexes []int64
		for i := range bundle {
			indexes = append(indexes, tlog.StoredHashIndex(0, first+int64(i)))
		}
		authentic, err := hashes.ReadHashes(indexes)
		must(err)
		for i, hash := range authentic {
			if hash != bundle[i] {
				fail("record %d is not the one in the tree", first+int64(i))
			}
		}
		records = append(records, bundle...)
	}
	return records
}

// Proves, from tiles alone, that the tree continues the older one and holds some of its records.
func checkGrowth(from source, old tlog.Tree, tree tlog.Tree) {
	hashes := tlog.TileHashReader(tree, tiles{from})
	if old.N > 0 {
		steps, err := tlog.ProveTree(tree.N, old.N, hashes)
		must(err)
		must(tlog.CheckTree(steps, tree.N, tree.Hash, old.N, old.Hash))
	}
	for _, record := range []int64{0, old.N, (old.N + tree.N) / 2, tree.N - 1} {
		first := record &^ (1<<tileHeight - 1)
		steps, err := tlog.ProveRecord(tree.N, record, hashes)
		must(err)
		must(tlog.CheckRecord(steps, tree.N, tree.Hash, record, readBundle(from, tree, first)[record-first]))
	}
}

// Reads checkpoints of a log that grows, and all records at the last of them.
func followServer(prefix string, vkey string, checkpoints int) {
	from := &server{prefix: prefix, client: http.Client{Timeout: 30 * time.Second}}
	var old tlog.Tree
	for seen := 0; seen < checkpoints; {
		_, tree := openCheckpoint(from, vkey)
		if tree.N < old.N || (tree.N == old.N && tree != old) {
			fail("a tree of %d records came after one of %d", tree.N, old.N)
		}
		if tree.N == old.N {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		checkGrowth(from, old, tree)
		old = tree
		seen++
	}
	records := checkRecords(from, old, tlog.TileHashReader(old, tiles{from}))
	fmt.Printf("%d checkpoints, %d records\n", checkpoints, len(records))
}

type proof struct {
	LeafIdx  *int64      `json:"leafIdx,omitempty"`
	TreeSize int64       `json:"treeSize,omitempty"`
	Root     tlog.Hash   `json:"root"`
	LeafHash tlog.Hash   `json:"leafHash"`
	Size1    int64       `json:"size1,omitempty"`
	Size2    int64       `json:"size2,omitempty"`
	Root1    tlog.Hash   `json:"root1"`
	Root2    tlog.Hash   `json:"root2"`
	Proof    []tlog.Hash `json:"proof"`
}

// Checks a proof of fieldprint's, and gives Go's own proof of the same.
func checkProof(p proof, tree tlog.Tree, records []tlog.Hash, hashes tlog.HashReader) []tlog.Hash {
	if p.LeafIdx != nil {
		if p.TreeSize == tree.N && p.Root != tree.Hash {
			fail("the proof's root is not the checkpoint's")
		}
		if p.LeafHash != records[*p.LeafIdx] {
			fail("the proof is about another record")
		}
		must(tlog.CheckRecord(p.Proof, p.TreeSize, p.Root, *p.LeafIdx, p.LeafHash))
		own, err := tlog.ProveRecord(p.TreeSize, *p.LeafIdx, hashes)
		must(err)
		return own
	}
	must(tlog.CheckTree(p.Proof, p.Size2, p.Root2, p.Size1, p.Root1))
	own, err := tlog.ProveTree(p.Size2, p.Size1, hashes)
	must(err)
	return own
}

// A witness as c2sp.org/tlog-cosignature describes it.
func cosign(text string, seed byte, time uint64) (vkey string, line string) {
	const name, kind = "witness.example/go", 4
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	public := append([]byte{kind}, key.Public().(ed25519.PublicKey)...)
	sum := sha256.Sum256(append([]byte(name+"\n"), public...))
	vkey = fmt.Sprintf("%s+%08x+%s", name, binary.BigEndian.Uint32(sum[:4]), base64.StdEncoding.EncodeToString(public))
	signature := append([]byte{}, sum[:4]...)
	signature = append(signature, make([]byte, 8)...)
	binary.BigEndian.PutUint64(signature[4:], time)
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", time, text)
	signature = append(signature, ed25519.Sign(key, []byte(message))...)
	return vkey, fmt.Sprintf("\u2014 %s %s\n", name, base64.StdEncoding.EncodeToString(signature))
}

func main() {
	if len(os.Args) != 4 && len(os.Args) != 5 {
		fail("usage: go run log_client.go EXPORT LEDGER.PUB PROOFS.JSONL OUTPUT | URL LEDGER.PUB CHECKPOINTS")
	}
	vkey, err := os.ReadFile(os.Args[2])
	must(err)
	if len(os.Args) == 4 {
		checkpoints, err := strconv.Atoi(os.Args[3])
		must(err)
		followServer(os.Args[1], strings.TrimSpace(string(vkey)), checkpoints)
		return
	}
	f, output := folder(os.Args[1]), os.Args[4]
	text, tree := openCheckpoint(f, strings.TrimSpace(string(vkey)))
	hashes := tlog.TileHashReader(tree, tiles{f})
	records := checkRecords(f, tree, hashes)
	root, err := tlog.TreeHash(tree.N, hashes)
	must(err)
	if root != tree.Hash {
		fail("the tiles do not give the checkpoint's root")
	}

	file, err := os.Open(os.Args[3])
	must(err)
	lines := bufio.NewScanner(file)
	count := 0
	for ; lines.Scan(); count++ {
		var p proof
		must(json.Unmarshal(lines.Bytes(), &p))
		p.Proof = checkProof(p, tree, records, hashes)
		own, err := json.Marshal(p)
		must(err)
		must(os.WriteFile(filepath.Join(output, fmt.Sprintf("go-%d.json", count)), own, 0o644))
	}
	must(lines.Err())

	witness, line := cosign(text, 7, 1700000000)
	must(os.WriteFile(filepath.Join(output, "witness.pub"), []byte(witness+"\n"), 0o644))
	must(os.WriteFile(filepath.Join(output, "cosigned"), []byte(line), 0o644))
	fmt.Printf("%d records, %d proofs\n", len(records), count)
}
