"""What tests of `fieldprint ledger` share: ledgers of random leaves, a server of one, and Go's transparency-log client."""

import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import unittest

from command_line import BINARY, DONE, TIMEOUT_S, ToolTest, run, scratch

GO_PACKAGES = "/usr/share/gocode"


class LedgerTest(ToolTest):
    def grow(self, name="log", leaves=700, *more):
        """A ledger of random leaves; gives its folder."""
        folder = self.path(name)
        self.succeed("bench", "ledger", "--data", folder, "--appends", leaves, "--repeats", 1, "--leaf-bytes", 60,
                     "--threads", 8, "--proof-leaves", 0, "--json", *more)
        return folder

    def ledger(self, command, *arguments):
        """Runs a part of the ledger command that must succeed; gives its output."""
        return self.succeed("ledger", command, *arguments).out

    def check(self, name, proof):
        """The exit status of check-proof for a JSON text."""
        path = self.write(name, proof if isinstance(proof, (bytes, str)) else json.dumps(proof))
        return run("ledger", "check-proof", "--file", path).status


class Served:
    """`ledger serve` on a free port, from with to the end of its block; it must end with exit status 0."""

    def __init__(self, test, *place, listen="127.0.0.1:0", end=signal.SIGTERM):
        self.test, self.end = test, end
        self.messages = tempfile.TemporaryFile()
        command = [BINARY, "ledger", "serve", *map(str, place), "--listen", listen, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.messages)

    def __enter__(self):
        try:
            line = self.process.stdout.readline()
            self.test.assertTrue(line, self.err())
            self.url = json.loads(line)["url"]
        except BaseException:
            self.kill()  # nobody else does: there is no __exit__ without an __enter__
            raise
        return self

    def kill(self):
        """Leaves nothing of it."""
        self.process.kill()
        self.process.communicate()
        self.messages.close()

    def err(self):
        """What it has said on stderr."""
        self.messages.seek(0)
        return self.messages.read().decode()

    def stop(self):
        """Ends it by a signal."""
        self.process.send_signal(self.end)
        self.test.assertEqual(DONE, self.process.wait(TIMEOUT_S), self.err())

    def __exit__(self, *_):
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            self.kill()


@unittest.skipUnless(shutil.which("go") and os.path.isdir(os.path.join(GO_PACKAGES, "src/golang.org/x/mod/sumdb/tlog")),
                     "no Go with golang-golang-x-mod-dev; run tools/setup --tests")
class GoLogTest(LedgerTest):
    """A test with a client that we did not write."""

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def program():
        """The Go program, built once for all tests."""
        go = {**os.environ, "GO111MODULE": "off", "GOPATH": GO_PACKAGES, "GOFLAGS": "", "GOPROXY": "off",
              "GOCACHE": os.path.join(scratch(), "go")}
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "log_client.go")
        path = os.path.join(scratch(), "log_client")
        subprocess.run(["go", "build", "-o", path, source], env=go, check=True)
        return path

    def client(self, log, folder, *arguments):
        """Runs the Go program on an export, or at the URL, of the ledger in `folder`."""
        return subprocess.run([self.program(), log, os.path.join(folder, "ledger.pub"), *arguments], capture_output=True,
                              text=True, timeout=TIMEOUT_S, check=False)
