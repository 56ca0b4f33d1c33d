"""`fieldprint ledger serve`: the log over HTTP, read by Python's client and followed by Go's."""

import json
import os
import signal
import socket
import subprocess
import time
import unittest
import urllib.error
import urllib.request

from command_line import BAD_USAGE, BINARY, DONE, ENVIRONMENT_FAILED, TIMEOUT_S, run
from ledger_log import GoLogTest, LedgerTest, Served
from private_postgres import children_of, database, server
from processes import started


class ServeTest(LedgerTest):
    def get(self, url, **fields):
        """Status, fields and body of what is at the URL."""
        request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in fields.items()})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def test_what_is_served_is_what_is_exported(self):
        folder, export = self.grow(), self.path("export")
        self.ledger("export", "--data", folder, "-o", export)
        files = [os.path.relpath(os.path.join(where, name), export) for where, _, names in os.walk(export) for name in names]
        self.assertEqual(8, len(files))
        before = sorted(os.listdir(folder))
        with Served(self, "--data", folder) as served:
            for name in files:
                with open(os.path.join(export, name), "rb") as file:
                    self.assertEqual((200, file.read()), self.get(f"{served.url}/{name}")[::2], name)
            status, _, proof = self.get(served.url + "/proof/77")
            self.assertEqual((200, self.ledger("prove", "--data", folder, "--index", 77).encode()), (status, proof))
            self.assertEqual(404, self.get(served.url + "/tile/0/003")[0])
            self.assertEqual("", served.err())
        self.assertEqual(before, sorted(os.listdir(folder)))

    def test_an_unchanged_checkpoint_is_not_sent_again(self):
        folder = self.grow("log", 5)
        with Served(self, "--data", folder, "--verbose") as served:
            _, fields, note = self.get(served.url + "/checkpoint")
            self.assertEqual(304, self.get(served.url + "/checkpoint", If_None_Match=fields["ETag"])[0])
            self.assertEqual(self.ledger("checkpoint", "--data", folder).encode(), note)
            served.stop()  # a line may be written after its answer is there
            self.assertIn(" GET /checkpoint 200 ", served.err())
            self.assertIn(" GET /checkpoint 304 0\n", served.err())

    def test_what_keeps_it_from_serving_is_said(self):
        folder = self.grow("log", 5)
        place = ["ledger", "serve", "--data", folder]
        with Served(self, "--data", folder) as served:
            taken = served.url.removeprefix("http://")
            self.assert_fails(run(*place, "--listen", taken), ENVIRONMENT_FAILED, taken, "Address already in use")
        for listen in ("", "8470", "localhost", "localhost:x", "localhost:70000", "::1:80"):
            self.assert_fails(run(*place, "--listen", listen), BAD_USAGE, "HOST:PORT", f"'{listen}'")
        self.assert_fails(run(*place, "--listen", "no-such-host.invalid:1"), BAD_USAGE, "no-such-host.invalid")
        self.assert_fails(run("ledger", "serve"), BAD_USAGE, "--data FOLDER")
        self.assert_fails(run("ledger", "serve", "--data", self.path("none")), BAD_USAGE, "no ledger")
        self.assertFalse(os.path.exists(self.path("none")))
        with Served(self, "--data", folder, listen="0.0.0.0:0") as served:
            self.assertIn("warning: 0.0.0.0:", served.err())
            self.assertEqual(200, self.get(served.url.replace("0.0.0.0", "127.0.0.1") + "/checkpoint")[0])

    def test_signals_end_it_beside_clients_that_stay(self):
        folder = self.grow("log", 5)
        for number in (signal.SIGINT, signal.SIGTERM):
            with Served(self, "--data", folder, end=number) as served:
                host, port = served.url.removeprefix("http://").split(":")
                with socket.create_connection((host, int(port))) as idle:
                    idle.sendall(b"GET /checkpoint HTTP/1.1\r\n\r\n")
                    self.assertTrue(idle.recv(100).startswith(b"HTTP/1.1 200"))
                    start = time.monotonic()
                    served.stop()
                    self.assertLess(time.monotonic() - start, 10)

    def test_a_log_of_requests_that_cannot_be_written_ends_nothing(self):
        folder = self.grow("log", 5)
        command = [BINARY, "ledger", "serve", "--data", folder, "--listen", "127.0.0.1:0", "--json", "--verbose"]
        with open("/dev/full", "wb") as full, started(command, stdout=subprocess.PIPE, stderr=full) as process:
            url = json.loads(process.stdout.readline())["url"]
            for _ in range(3):
                self.assertEqual(200, self.get(url + "/checkpoint")[0])
            process.terminate()
            self.assertEqual(DONE, process.wait(TIMEOUT_S))

    def test_what_clients_send_is_escaped_where_it_is_shown(self):
        with Served(self, "--data", self.grow("log", 5), "--verbose") as served:
            host, port = served.url.removeprefix("http://").split(":")
            for sent in (b"\x1b[31mEVIL\x07 /\x1b HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\nRange: bytes=0-9\r\n\r\n"):
                with socket.create_connection((host, int(port))) as client:
                    client.sendall(sent)
                    self.assertTrue(client.recv(100).startswith(b"HTTP/1.1 400 "))
            served.stop()
            self.assertIn(r" \x1b[31mEVIL\x07 /\x1b 400 0", served.err())
            self.assertIn("127.0.0.1 - - 400 0\n", served.err())
            self.assertNotIn("\x1b", served.err())

    def test_it_ends_beside_a_database_that_stands_still(self):
        if server() is None:
            self.skipTest("no PostgreSQL server; run tools/setup --tests")
        url = database("still")
        folder = self.grow("still", 5, "--database", url)
        with started([BINARY, "ledger", "serve", "--data", folder, "--database", url, "--listen", "127.0.0.1:0", "--json"],
                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            host, port = json.loads(process.stdout.readline())["url"].removeprefix("http://").split(":")
            serving = children_of(server().process.pid)
            try:
                for child in serving:
                    os.kill(child, signal.SIGSTOP)
                with socket.create_connection((host, int(port))) as client:
                    client.sendall(b"GET /checkpoint HTTP/1.1\r\n\r\n")
                    time.sleep(0.2)  # it waits for the database now, or will when it is told to end
                    process.terminate()
                    time.sleep(0.2)
                    process.terminate()
                    self.assertEqual(ENVIRONMENT_FAILED, process.wait(TIMEOUT_S))
            finally:
                for child in serving:
                    os.kill(child, signal.SIGCONT)


class GoFollowsTest(GoLogTest):
    """A log's own client reads a log that grows."""

    def test_go_follows_a_served_log_while_another_process_appends(self):
        self.program()
        places = [("file", [])]
        url = database("served")
        if url:
            places.append(("database", ["--database", url]))
        for name, more in places:
            folder = self.path(name)
            place = ["--data", folder, *more]
            writer = [BINARY, "bench", "ledger", *place, "--appends", "10000000", "--repeats", "1", "--leaf-bytes", "60",
                      "--threads", "4", "--proof-leaves", "0"]
            with started(writer, stdout=subprocess.DEVNULL) as process:
                self.wait_for_checkpoint(place)
                with Served(self, *place) as served:
                    ended = self.client(served.url, folder, "20")
                    self.assertIs(None, process.poll(), "the writer has ended")
                    process.kill()
                    process.wait()
                    self.assertEqual(0, ended.returncode, ended.stderr)
                    self.assertRegex(ended.stdout, r"^20 checkpoints, \d+ records\n$")
                    self.assert_all_is_served(served.url, folder, place)

    def assert_all_is_served(self, url, folder, place):
        """What is served is what the ledger holds, once a database server has finished what a killed writer sent."""
        for _ in range(20):
            records = json.loads(self.ledger("audit", *place, "--json"))["records"]
            last = self.client(url, folder, "1")
            if last.stdout == f"1 checkpoints, {records} records\n":
                break
        self.assertEqual((0, f"1 checkpoints, {records} records\n"), (last.returncode, last.stdout), last.stderr)

    def wait_for_checkpoint(self, place):
        """Until the ledger, which another process begins, has a checkpoint."""
        for _ in range(600):
            if run("ledger", "checkpoint", *place[-2:]).status == DONE:
                return
            time.sleep(0.05)
        self.fail("the ledger does not begin")


if __name__ == "__main__":
    unittest.main()
