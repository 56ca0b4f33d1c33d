"""A private PostgreSQL server of Debian's package, on a Unix socket in a temporary folder."""

import atexit
import contextlib
import ctypes
import functools
import glob
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time


PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent():
    """For a child before it runs its program, after the change of user, which would forget it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def children_of(parent):
    """The processes that a process has started and that have not ended."""
    children = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            pid, rest = path.split("/")[2], file.read().rpartition(")")[2]  # proc(5): pid (name) state parent ...
            if int(rest.split()[1]) == parent:
                children.append(int(pid))
    return children


class Server:
    """A server that ends with its process. Run by root it serves as the user postgres, because it refuses root."""

    def __init__(self, programs, base=None):
        self.programs = programs
        self.process = None
        self.numbers = itertools.count()
        self.folder = tempfile.mkdtemp(prefix="fieldprint-pg-", dir=base)
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.data = os.path.join(self.folder, "data")
        self.log = os.path.join(self.folder, "log")
        self.user = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            self.give(self.folder)
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self.quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.folder, **self.user}
        subprocess.run([self.program("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8",
                        "--locale=C"], check=True, **self.quiet)
        atexit.register(self.stop)
        self.start()

    @classmethod
    def begin(cls, base=None):
        """A server in a folder of `base`; None where the package is not installed."""
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        return cls(programs[-1], base) if programs else None

    def program(self, name):
        """The path of a program of the package."""
        return os.path.join(self.programs, name)

    @staticmethod
    def give(path):
        """Makes a path the server's."""
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(path, account.pw_uid, account.pw_gid)

    def start(self):
        """Starts it, again if need be: the processes of one that was killed hold its memory until they notice."""
        for _ in range(1200):
            if self.process is None or self.process.poll() is not None:
                with open(self.log, "ab") as log:
                    self.process = subprocess.Popen(
                        [self.program("postgres"), "-D", self.data, "-k", self.folder, "-h", "", "-c", "max_connections=50",
                         "-c", "log_line_prefix=%r "], preexec_fn=end_with_parent, **{**self.quiet, "stderr": log})
            if subprocess.run([self.program("pg_isready"), "-q", "-h", self.folder], check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError("the private PostgreSQL server does not start")

    def end(self, with_signal):
        """Sends a signal that ends it, and waits."""
        if self.process is not None:
            self.process.send_signal(with_signal)
            self.process.wait()
            self.process = None

    def stop(self):
        """Ends it in good order."""
        self.end(signal.SIGINT)

    def kill(self):
        """Kills it without a word to anybody, with those of its processes that serve connections: these would go on for as
        long as they are kept busy."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGSTOP)  # so that it starts no more
        serving = children_of(self.process.pid)
        self.end(signal.SIGKILL)
        for child in serving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def url(self, name, host=None):
        """The URL of a database."""
        return f"postgresql:///{name}?host={host or self.folder}&user=postgres"

    def create(self, name=None, template=None, tablespace=None):
        """A new database, empty or a copy: its name."""
        name = name or f"d{next(self.numbers)}"
        options = [*(["-T", template] if template else []), *(["-D", tablespace] if tablespace else [])]
        subprocess.run([self.program("createdb"), "-h", self.folder, "-U", "postgres", *options, name], check=True)
        return name

    def drop(self, name):
        """Removes a database, whoever is connected."""
        subprocess.run([self.program("dropdb"), "-f", "-h", self.folder, "-U", "postgres", name], check=True)

    def told(self):
        """What it has told clients of errors, by its log: not what its own processes met."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return "".join(line for line in file if line.startswith("[local] "))

    def query(self, name, sql):
        """The lines that statements give, columns with | between them."""
        out = subprocess.run([self.program("psql"), "-h", self.folder, "-U", "postgres", "-d", name, "-XAtq", "-v", "ON_ERROR_STOP=1"],
                             input=sql, check=True, capture_output=True, text=True).stdout
        return out.splitlines()


@functools.lru_cache(maxsize=None)
def server():
    """The one server of all tests; None where the package is not installed."""
    return Server.begin()


def database(name):
    """The URL of an empty database; None where there is no server."""
    one = server()
    return one.url(one.create(name)) if one else None
