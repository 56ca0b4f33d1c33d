"""Runs the `fieldprint` binary as a user would, on real models that are imported once for all tests.

FIELDPRINT_BINARY names the program, FIELDPRINT_SMOLLM2_GGUF the model (and FIELDPRINT_GEMMA3_GGUF another); tests without
what they need skip.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import unittest
from typing import NamedTuple

DONE, REFUTED, BAD_USAGE, ENVIRONMENT_FAILED = range(4)
BINARY = os.environ.get("FIELDPRINT_BINARY", "")
GGUF = os.environ.get("FIELDPRINT_SMOLLM2_GGUF", "")
GEMMA3_GGUF = os.environ.get("FIELDPRINT_GEMMA3_GGUF", "")
TIMEOUT_S = 300


class Ended(NamedTuple):
    """What a command left behind. A negative status is the signal that ended it."""

    status: int
    out: str
    err: str

    def lines(self):
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments, env=None, stdout=subprocess.PIPE, before=None):
    """Runs fieldprint with the arguments to its end. `before` runs in the child just before it begins."""
    environment = {name: value for name, value in os.environ.items() if name != "FIELDPRINT_BACKEND"}
    environment.update(env or {})
    process = subprocess.run([BINARY, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=stdout,
                             stderr=subprocess.PIPE, env=environment, preexec_fn=before, timeout=TIMEOUT_S, check=False)
    return Ended(process.returncode, (process.stdout or b"").decode(), process.stderr.decode())


@functools.lru_cache(maxsize=None)
def scratch():
    """A folder for everything that the tests make; it goes away with the process."""
    folder = tempfile.mkdtemp(prefix="fieldprint-cli-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.lru_cache(maxsize=None)
def model(gguf=GGUF):
    """Path of the imported model file."""
    path = os.path.join(scratch(), os.path.basename(gguf) + ".fpm")
    ended = run("model", "import", gguf, "-o", path)
    if ended.status != DONE:
        raise AssertionError(f"the import failed: {ended.err}")
    return path


@functools.lru_cache(maxsize=None)
def backends():
    """Backends that this machine can run, the fastest first."""
    return json.loads(run("doctor", "--json").out)["backends"]


def limit_file_size(most):
    """For `before`: no file may become longer than `most` bytes, as on a full disk; writing fails, nothing is killed."""
    def limit():
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    return limit


@unittest.skipUnless(BINARY, "set FIELDPRINT_BINARY")
class ToolTest(unittest.TestCase):
    """A folder of its own for every test, and what every command must keep to. No model is needed."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=scratch())

    def tearDown(self):
        shutil.rmtree(self.folder)

    def path(self, name):
        """Where a file of this test lies."""
        return os.path.join(self.folder, name)

    def write(self, name, content):
        """Writes a file of this test; gives its path."""
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        return path

    def assert_fails(self, ended, status, *words):
        """One line on stderr that names what is wrong, nothing that looks like an answer on stdout."""
        self.assertEqual(status, ended.status, ended)
        self.assertEqual("", ended.out)
        self.assertTrue(ended.err.startswith("fieldprint: "), ended.err)
        for word in words:
            self.assertIn(word, ended.err)

    def succeed(self, *arguments, **options):
        """Runs a command that must succeed, and quietly: stderr is no terminal here."""
        ended = run(*arguments, **options)
        self.assertEqual((DONE, ""), (ended.status, ended.err))
        return ended


@unittest.skipUnless(BINARY and GGUF, "set FIELDPRINT_BINARY and FIELDPRINT_SMOLLM2_GGUF")
class CommandLineTest(ToolTest):
    """A test with the model."""

    def answers(self, *arguments, **options):
        """`run --json` on the model: the answers by their ids."""
        ended = self.succeed("run", "-m", model(), "--json", *arguments, **options)
        return {line["id"]: line for line in ended.lines()}
