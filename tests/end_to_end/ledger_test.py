"""`fieldprint ledger` on ledgers in SQLite and PostgreSQL, and beside Go's transparency-log client."""

import base64
import glob
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import time
import unittest

from command_line import BAD_USAGE, BINARY, DONE, ENVIRONMENT_FAILED, REFUTED, CommandLineTest, model, run
from ledger_log import GoLogTest, LedgerTest
from private_postgres import database, server
from processes import started

VECTORS = os.environ.get("FIELDPRINT_MERKLE_VECTORS", "")


class ProofsTest(LedgerTest):
    def test_proofs_hold_and_altered_ones_do_not(self):
        folder = self.grow()
        for index in (0, 1, 255, 256, 698, 699):
            proof = json.loads(self.ledger("prove", "--data", folder, "--index", index, "--json"))
            self.assertEqual({"leafIdx", "treeSize", "root", "leafHash", "proof"}, set(proof))
            self.assertEqual((index, 700), (proof["leafIdx"], proof["treeSize"]))
            self.assertEqual(DONE, self.check("proof.json", proof))
            for key, value in (("leafIdx", index + 1), ("leafIdx", 2**64 - 1), ("treeSize", 0), ("proof", proof["proof"][1:]),
                               ("proof", None), ("proof", proof["proof"] + [""]), ("leafHash", ""),
                               ("root", base64.b64encode(bytes(32)).decode())):
                self.assertEqual(REFUTED, self.check("bad.json", {**proof, key: value}), (key, value))
            for key, value in (("leafIdx", -1), ("leafIdx", 1.5), ("leafIdx", "1"), ("treeSize", None), ("root", "??"),
                               ("proof", [1])):
                self.assertEqual(BAD_USAGE, self.check("bad.json", {**proof, key: value}), (key, value))
        for old in (1, 256, 699, 700):
            proof = json.loads(self.ledger("prove", "--data", folder, "--from", old))
            self.assertEqual({"size1", "size2", "root1", "root2", "proof"}, set(proof))
            self.assertEqual(DONE, self.check("proof.json", proof))
            self.assertEqual(REFUTED, self.check("bad.json", {**proof, "size2": 1500}))
            self.assertEqual(REFUTED, self.check("bad.json", {**proof, "size1": 0}))
        self.assertEqual(BAD_USAGE, self.check("bad.json", "{"))
        self.assertEqual(BAD_USAGE, self.check("bad.json", b"\xff\xfe"))

    def test_check_proof_says_why(self):
        path = self.write("p.json", json.dumps({"size1": 3, "size2": 2, "root1": "", "root2": "", "proof": []}))
        ended = run("ledger", "check-proof", "--file", path)
        self.assertEqual((REFUTED, ""), (ended.status, ended.err))
        self.assertIn("DOES NOT HOLD", ended.out)
        line, = run("ledger", "check-proof", "--file", path, "--json").lines()
        self.assertIs(False, line["holds"])
        self.assertIn("32", line["reason"])
        self.assert_fails(run("ledger", "check-proof", "--file", self.write("q", "{}")), BAD_USAGE, "leafIdx", "size1")
        self.assert_fails(run("ledger", "check-proof", "--file", self.path("none")), BAD_USAGE, "none", "No such file")

    @unittest.skipUnless(VECTORS, "set FIELDPRINT_MERKLE_VECTORS to the testdata folder of transparency-dev/merkle")
    def test_the_published_vectors(self):
        paths = glob.glob(os.path.join(VECTORS, "*clusion/**/*.json"), recursive=True)
        paths = [path for path in paths + glob.glob(os.path.join(VECTORS, "consistency/**/*.json"), recursive=True)
                 if "/subtree" not in path]
        self.assertGreater(len(paths), 150)
        for path in paths:
            with open(path, encoding="utf-8") as file:
                wrong = json.load(file)["wantErr"]
            self.assertEqual(REFUTED if wrong else DONE, run("ledger", "check-proof", "--file", path).status, path)

    def test_a_tlog_proof_is_checked_offline(self):
        folder = self.grow()
        proof = self.write("p.tlog-proof", self.ledger("prove", "--data", folder, "--index", 77))
        with sqlite3.connect(os.path.join(folder, "ledger.sqlite")) as connection:
            leaf, = connection.execute("SELECT bytes FROM leaves WHERE idx = 77").fetchone()
        connection.close()
        leaf_file = self.write("leaf", leaf)
        leaf_hash = hashlib.sha256(b"\0" + leaf).hexdigest()
        key = ["--key", os.path.join(folder, "ledger.pub")]
        checked = ["ledger", "check-proof", "--tlog-proof", proof, *key]
        self.succeed(*checked, "--leaf", leaf_file)
        line, = self.succeed(*checked, "--leaf-hash", leaf_hash, "--json").lines()
        self.assertEqual((True, 77, 700), (line["holds"], line["index"], line["size"]))
        self.assertEqual(REFUTED, run(*checked, "--leaf", self.write("other", leaf + b"x")).status)
        stranger = self.grow("stranger", 1)
        ended = run(*checked[:-1], os.path.join(stranger, "ledger.pub"), "--leaf", leaf_file)
        self.assertEqual(REFUTED, ended.status)
        self.assert_fails(run(*checked), BAD_USAGE, "--leaf FILE")
        self.assert_fails(run(*checked[:4], "--leaf", leaf_file), BAD_USAGE, "--key FILE")
        cut = self.write("cut", "c2sp.org/tlog-proof@v1\nindex 1\n")
        self.assert_fails(run("ledger", "check-proof", "--tlog-proof", cut, *key, "--leaf", leaf_file), BAD_USAGE, cut,
                          "malformed tlog-proof")

    def test_what_cannot_be_proved_is_said(self):
        folder = self.grow()
        place = ["ledger", "prove", "--data", folder]
        for arguments, words in ((["--index", 700], ["no leaf 700", "700 leaves"]), (["--from", 701], ["701", "700"]),
                                 (["--from", 0], ["at least one leaf"]), (["--index", 1, "--size", 900], ["700 leaves", "900"]),
                                 (["--receipt", self.path("none")], ["none", "No such file"])):
            self.assert_fails(run(*place, *arguments), BAD_USAGE, *words)
        self.assert_fails(run("ledger", "prove", "--index", 1), BAD_USAGE, "--data FOLDER")
        self.assert_fails(run("ledger", "prove", "--index", 1, "--data", self.path("none")), BAD_USAGE, "no ledger")
        self.assert_fails(run("ledger", "prove", "--index", 1, "--database", "none"), BAD_USAGE, "postgresql://")
        for part in ("checkpoint", "prove", "check-proof", "audit", "export", "serve"):
            self.assertIn("--json", self.succeed("ledger", part, "--help").out)


class AuditTest(LedgerTest):
    def tampered(self, sql):
        """An audit of a ledger that somebody changed with SQL."""
        folder = self.path("tampered")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder_of_log, folder)
        connection = sqlite3.connect(os.path.join(folder, "ledger.sqlite"))
        with connection:
            connection.execute(sql)
        connection.close()
        ended = run("ledger", "audit", "--data", folder, "--json")
        self.assertEqual((REFUTED, ""), (ended.status, ended.err), sql)
        return ended.lines()[0]

    def test_the_first_wrong_record_is_named(self):
        self.folder_of_log = self.grow()
        sound, = self.succeed("ledger", "audit", "--data", self.folder_of_log, "--json").lines()
        self.assertEqual((True, 700, True), (sound["sound"], sound["records"], sound["signatures_checked"]))
        self.assertIn("sound: 700 records", self.ledger("audit", "--data", self.folder_of_log))
        for record in (0, 5, 512, 699):
            for sql in (f"UPDATE leaves SET bytes = x'00' WHERE idx IN ({record}, 699)", f"DELETE FROM leaves WHERE idx = {record}",
                        f"UPDATE nodes SET hash = zeroblob(32) WHERE level = 0 AND idx = {record}"):
                line = self.tampered(sql)
                self.assertEqual({"begin": record, "end": record + 1}, line["first_wrong"], sql)
                self.assertIn(f"record {record} ", line["problem"])
        self.assertEqual({"begin": 64, "end": 128},
                         self.tampered("DELETE FROM nodes WHERE level = 6 AND idx = 1")["first_wrong"])
        forged = self.tampered("UPDATE checkpoints SET note = (SELECT note FROM checkpoints ORDER BY size LIMIT 1) WHERE size = 700")
        self.assertIn("the checkpoint kept for 700 records is wrong", forged["problem"])
        self.assertIsNone(forged["first_wrong"])

    def test_flipped_bits_never_pass(self):
        folder = self.grow(leaves=200)
        database_file = os.path.join(folder, "ledger.sqlite")
        self.ledger("audit", "--data", folder)
        with open(database_file, "rb") as file:
            content = bytearray(file.read())
        choose = random.Random(4)
        for wanted in range(40):
            copy = self.path(f"copy-{wanted}")
            os.mkdir(copy)
            shutil.copy(os.path.join(folder, "ledger.pub"), copy)
            # Within a leaf or a hash: those are random bytes, of which half a page is not.
            connection = sqlite3.connect(database_file)
            leaf, = connection.execute("SELECT bytes FROM leaves WHERE idx = ?", (wanted * 5,)).fetchone()
            connection.close()
            at = content.find(leaf) + choose.randrange(len(leaf))
            altered = bytearray(content)
            altered[at] ^= 1 << choose.randrange(8)
            with open(os.path.join(copy, "ledger.sqlite"), "wb") as file:
                file.write(altered)
            ended = run("ledger", "audit", "--data", copy)
            self.assertEqual(REFUTED, ended.status, ended)
            self.assertIn(f"record {wanted * 5} of the ledger is wrong", ended.out)

    def test_a_published_checkpoint_is_held_against_the_ledger(self):
        folder = self.grow()
        published = self.write("published", self.ledger("checkpoint", "--data", folder))
        self.ledger("audit", "--data", folder, "--checkpoint", published)
        other = self.grow("other")
        shutil.copy(os.path.join(folder, "ledger.pub"), self.path("first.pub"))
        ended = run("ledger", "audit", "--data", other, "--checkpoint", published, "--key", self.path("first.pub"),
                    "--key", os.path.join(other, "ledger.pub"))
        self.assertEqual(REFUTED, ended.status)
        self.assertIn("the published checkpoint for 700 records", ended.out)

    def test_killed_writers_leave_a_sound_ledger(self):
        choose = random.Random(9)
        for number in range(12):
            folder = self.path(f"killed-{number}")
            command = [BINARY, "bench", "ledger", "--data", folder, "--appends", "1000000", "--threads", "32", "--proof-leaves", "0"]
            with started(command, stdout=subprocess.DEVNULL) as process:
                while not os.path.exists(os.path.join(folder, "ledger.pub")):
                    self.assertIsNone(process.poll(), "the writer has ended")
                    time.sleep(0.01)
                time.sleep(choose.uniform(0, 0.6))
            ended = run("ledger", "audit", "--data", folder, "--json")
            self.assertEqual(DONE, ended.status, ended)
            # Every record is under a checkpoint: the two are committed together.
            checkpoint, = self.succeed("ledger", "checkpoint", "--data", folder, "--json").lines()
            self.assertEqual(ended.lines()[0]["records"], checkpoint["size"])


class ExportTest(LedgerTest):
    def test_exports_go_on_where_they_ended(self):
        folder, output = self.grow(), self.path("made/export")
        line, = self.succeed("ledger", "export", "--data", folder, "-o", output, "--json").lines()
        self.assertEqual((700, 0), (line["size"], line["old_size"]))
        with open(os.path.join(output, "checkpoint"), encoding="utf-8") as file:
            self.assertEqual(self.ledger("checkpoint", "--data", folder), file.read())
        sizes = {name: os.path.getsize(os.path.join(output, "tile", name))
                 for name in ("0/000", "0/001", "0/002.p/188", "1/000.p/2", "entries/000", "entries/002.p/188")}
        self.assertEqual({"0/000": 8192, "0/001": 8192, "0/002.p/188": 188 * 32, "1/000.p/2": 64,
                          "entries/000": 256 * 62, "entries/002.p/188": 188 * 62}, sizes)
        line, = self.succeed("ledger", "export", "--data", folder, "-o", output, "--json").lines()
        self.assertEqual(0, line["files"])
        other = self.grow("other", 900)
        self.assert_fails(run("ledger", "export", "--data", other, "-o", output), BAD_USAGE, "export into another folder")
        self.assert_fails(run("ledger", "export", "--data", folder, "-o", self.write("file", "x")), BAD_USAGE, "in its way")
        self.assert_fails(run("ledger", "export", "--data", folder, "-o", output, "--size", 10**9), BAD_USAGE, "no checkpoint for")


class GoClientTest(GoLogTest):
    """Clients that we did not write read what we write, and we read what they write."""

    def test_go_checks_our_log_and_we_check_what_go_made(self):
        for leaves in (1, 256, 70000):
            folder, output = self.grow(f"log-{leaves}", leaves), self.path(f"output-{leaves}")
            os.mkdir(output)
            export = self.path(f"export-{leaves}")
            self.ledger("export", "--data", folder, "-o", export)
            places = sorted({0, leaves // 3, leaves // 2, leaves - 1})
            proofs = [self.ledger("prove", "--data", folder, "--index", place, "--json") for place in places]
            proofs += [self.ledger("prove", "--data", folder, "--from", place + 1) for place in places]
            proofs.append(self.ledger("prove", "--data", folder, "--index", leaves // 3, "--size", leaves // 2 + 1, "--json"))
            ended = self.client(export, folder, self.write("proofs.jsonl", "".join(proofs)), output)
            self.assertEqual((0, f"{leaves} records, {len(proofs)} proofs\n"), (ended.returncode, ended.stdout), ended.stderr)
            for path in glob.glob(os.path.join(output, "go-*.json")):
                self.succeed("ledger", "check-proof", "--file", path)
            self.accept_cosignature(folder, output)

    def accept_cosignature(self, folder, output):
        """The Go program's cosignature is checked, kept, and asked for."""
        witness, cosigned = (os.path.join(output, name) for name in ("witness.pub", "cosigned"))
        add = ["ledger", "checkpoint", "--data", folder, "--add", cosigned]
        self.assert_fails(run(*add), BAD_USAGE, "--witness FILE")
        with open(cosigned, encoding="utf-8") as file:
            line = file.read()
        place = len(line) - 20
        forged = self.write("forged", line[:place] + ("A" if line[place] != "A" else "B") + line[place + 1:])
        self.assertEqual(REFUTED, run(*add[:-1], forged, "--witness", witness).status)
        signed = self.succeed(*add, "--witness", witness).out
        self.assertTrue(signed.endswith(line))
        self.assertEqual(signed, self.ledger("checkpoint", "--data", folder))
        proof = self.ledger("prove", "--data", folder, "--index", 0)
        leaf = json.loads(self.ledger("prove", "--data", folder, "--index", 0, "--json"))["leafHash"]
        check = ["ledger", "check-proof", "--tlog-proof", self.write("p.tlog-proof", proof), "--leaf-hash", leaf,
                 "--key", os.path.join(folder, "ledger.pub")]
        checked, = self.succeed(*check, "--witness", witness, "--json").lines()
        self.assertEqual([{"witness": "witness.example/go", "time": 1700000000}], checked["cosignatures"])
        ended = run(*check, "--witness", witness, "--witnesses", 2)
        self.assertEqual(REFUTED, ended.status)
        self.assertIn("1 of the 2 witnesses", ended.out)

    def test_go_refuses_an_altered_log(self):
        folder, output, export = self.grow(), self.path("output"), self.path("export")
        os.mkdir(output)
        proofs = self.write("proofs.jsonl", "")
        self.ledger("export", "--data", folder, "-o", export)
        self.assertEqual(0, self.client(export, folder, proofs, output).returncode)
        for name in ("tile/0/001", "tile/entries/000", "checkpoint"):
            path = os.path.join(export, name)
            with open(path, "rb") as file:
                content = file.read()
            with open(path, "wb") as file:
                file.write(content[:40] + bytes([content[40] ^ 1]) + content[41:])
            self.assertNotEqual(0, self.client(export, folder, proofs, output).returncode, name)
            with open(path, "wb") as file:
                file.write(content)


@unittest.skipUnless(server(), "no PostgreSQL server is installed; run tools/setup --tests")
class PostgresTest(LedgerTest):
    def test_a_ledger_in_a_database(self):
        url = database("whole")
        folder = self.grow("key", 500, "--database", url)
        self.assertFalse(os.path.exists(os.path.join(folder, "ledger.sqlite")))
        place = ["--data", folder, "--database", url]
        self.assertIn("sound: 500 records", self.ledger("audit", *place))
        self.assertEqual(DONE, self.check("p", self.ledger("prove", "--database", url, "--index", 7, "--json")))
        self.assertEqual(DONE, self.check("p", self.ledger("prove", "--database", url, "--from", 7)))
        self.assertIn("\n500\n", self.ledger("checkpoint", *place))
        line, = self.succeed("ledger", "export", "--database", url, "-o", self.path("export"), "--json").lines()
        self.assertEqual(500, line["size"])

    def test_databases_that_do_not_serve(self):
        ended = run("ledger", "audit", "--database", f"postgresql:///none?host={self.folder}")
        self.assert_fails(ended, ENVIRONMENT_FAILED, "cannot connect to PostgreSQL", "check the URL")
        self.assert_fails(run("ledger", "audit", "--database", database("empty")), BAD_USAGE, "no ledger")


class WithModelTest(CommandLineTest):
    """Records that answers made."""

    def test_a_receipts_record_is_proved_and_audited(self):
        places = [[]]
        url = database("answers")
        if url:
            places.append(["--database", url])
        for number, more in enumerate(places):
            place = ["--data", self.path(f"log-{number}"), *more]
            receipts = self.path(f"receipts-{number}")
            for name in ("first", "second"):
                prompts = self.write("p.jsonl", json.dumps({"id": name, "prompt": "The sea is", "n": 3}) + "\n")
                self.succeed("run", "-m", model(), "--prompts", prompts, *place, "--receipts", receipts, "--json")
            receipt = os.path.join(receipts, "first.receipt")
            self.succeed("verify", receipt, "-m", model(), "--key", os.path.join(place[1], "ledger.pub"))
            audit = self.succeed("ledger", "audit", *place).out
            records = int(re.search(r"sound: (\d+) records", audit)[1])
            proof = json.loads(self.succeed("ledger", "prove", *place, "--receipt", receipt, "--json").out)
            with open(os.path.join(receipts, "first.json"), encoding="utf-8") as file:
                self.assertEqual((json.load(file)["leaf_index"], records), (proof["leafIdx"], proof["treeSize"]))
            text = self.write("p.tlog-proof", self.succeed("ledger", "prove", *place, "--receipt", receipt).out)
            self.succeed("ledger", "check-proof", "--tlog-proof", text, "--leaf-hash", proof["leafHash"], "--key",
                         os.path.join(place[1], "ledger.pub"))
        if url:
            ended = run("ledger", "prove", "--data", self.path("log-0"), "--receipt", self.path("receipts-1/first.receipt"))
            self.assertEqual(DONE, ended.status, "the same answer is the same record")
        prompts = self.write("p.jsonl", json.dumps({"id": "other", "prompt": "A", "n": 1}) + "\n")
        self.succeed("run", "-m", model(), "--prompts", prompts, "--data", self.path("other"), "--receipts",
                     self.path("other"), "--json")
        ended = run("ledger", "prove", "--data", self.path("log-0"), "--receipt", self.path("other/other.receipt"))
        self.assert_fails(ended, REFUTED, "another ledger")


if __name__ == "__main__":
    unittest.main()
