"""A private PostgreSQL server of Debian's package, on a Unix socket in a temporary folder."""

import atexit
import ctypes
import functools
import glob
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


@functools.lru_cache(maxsize=None)
def server():
    """The folder of the server's socket, the same for all tests; None where the package is not installed.

    Run by root it serves as the user postgres, because the server refuses root.
    """
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not programs:
        return None
    folder = tempfile.mkdtemp(prefix="fieldprint-pg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    user = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data = os.path.join(folder, "data")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run([os.path.join(programs[-1], "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8",
                    "--locale=C"], check=True, **quiet)
    process = subprocess.Popen([os.path.join(programs[-1], "postgres"), "-D", data, "-k", folder, "-h", ""],
                               preexec_fn=end_with_parent, **quiet)

    def stop():
        process.terminate()
        process.wait()

    atexit.register(stop)
    for _ in range(600):
        if subprocess.run([os.path.join(programs[-1], "pg_isready"), "-q", "-h", folder], check=False).returncode == 0:
            return folder
        time.sleep(0.05)
    raise AssertionError("the private PostgreSQL server does not start")


def database(name):
    """The URL of an empty database; None where there is no server."""
    folder = server()
    if folder is None:
        return None
    program = sorted(glob.glob("/usr/lib/postgresql/*/bin/createdb"))[-1]
    subprocess.run([program, "-h", folder, "-U", "postgres", name], check=True)
    return f"postgresql:///{name}?host={folder}&user=postgres"
