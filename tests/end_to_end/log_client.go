// Checks an exported log with Go's golang.org/x/mod/sumdb packages, which share no code with fieldprint, and makes
// proofs and a witness's cosignature for fieldprint to check.
//
// usage: go run log_client.go EXPORT LEDGER.PUB PROOFS.JSONL OUTPUT
//
// PROOFS.JSONL holds what `fieldprint ledger prove --json` printed. OUTPUT is a folder for the proofs made here
// (go-N.json), and for witness.pub and cosigned.
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
	"os"
	"path/filepath"
	"strconv"
	"strings"

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

// Tiles of c2sp.org/tlog-tiles: Go's paths without the height.
type folder string

func (f folder) Height() int                      { return tileHeight }
func (f folder) SaveTiles([]tlog.Tile, [][]byte)  {}
func (f folder) read(name string) ([]byte, error) { return os.ReadFile(filepath.Join(string(f), name)) }
func (f folder) path(tile tlog.Tile) string {
	path := strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	return "tile/" + strings.Replace(path, "data/", "entries/", 1)
}

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		data, err := f.read(f.path(tile))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

// The checkpoint's text and tree, if the log's key signed it.
func openCheckpoint(f folder, vkey string) (string, tlog.Tree) {
	verifier, err := note.NewVerifier(vkey)
	must(err)
	signed, err := f.read("checkpoint")
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

// Reads every record and compares its hash with the tiles, which Go checks against the checkpoint.
func checkRecords(f folder, tree tlog.Tree, hashes tlog.HashReader) []tlog.Hash {
	var records []tlog.Hash
	for first := int64(0); first < tree.N; first += 1 << tileHeight {
		width := tree.N - first
		if width > 1<<tileHeight {
			width = 1 << tileHeight
		}
		tile := tlog.Tile{H: tileHeight, L: -1, N: first >> tileHeight, W: int(width)}
		bundle, err := f.read(f.path(tile))
		must(err)
		var indexes []int64
		for i := int64(0); i < width; i++ {
			if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
				fail("%s is cut", f.path(tile))
			}
			end := 2 + int(binary.BigEndian.Uint16(bundle))
			records = append(records, tlog.RecordHash(bundle[2:end]))
			bundle = bundle[end:]
			indexes = append(indexes, tlog.StoredHashIndex(0, first+i))
		}
		if len(bundle) != 0 {
			fail("%s goes on", f.path(tile))
		}
		authentic, err := hashes.ReadHashes(indexes)
		must(err)
		for i, hash := range authentic {
			if hash != records[first+int64(i)] {
				fail("record %d is not the one in the tree", first+int64(i))
			}
		}
	}
	return records
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
	if len(os.Args) != 5 {
		fail("usage: go run log_client.go EXPORT LEDGER.PUB PROOFS.JSONL OUTPUT")
	}
	f, output := folder(os.Args[1]), os.Args[4]
	vkey, err := os.ReadFile(os.Args[2])
	must(err)
	text, tree := openCheckpoint(f, strings.TrimSpace(string(vkey)))
	hashes := tlog.TileHashReader(tree, f)
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
