"""What the kinds of faults share: folders, the two programs, and the table."""

import itertools
import json
import os
import subprocess

BINARY = os.environ.get("FIELDPRINT_BINARY", "")
TOOL = os.environ.get("FIELDPRINT_CRASH_TOOL", "")
KILLED = -9
TIMEOUT_S = 300


class Campaign:
    """A folder for everything, and the rows of the table."""

    def __init__(self, folder, quick):
        self.base = folder
        self.quick = quick
        self.rows = []
        self.numbers = itertools.count()

    def folder(self):
        """A new folder."""
        path = os.path.join(self.base, str(next(self.numbers)))
        os.mkdir(path)
        return path

    def row(self, what):
        """A new row, to be counted into."""
        row = Row(what)
        self.rows.append(row)
        return row


class Row(dict):
    """Counts of one kind of fault."""

    def __init__(self, what):
        super().__init__(what=what, tried=0, answered=0, lost=0, problem="")

    def count(self, answered, lost=0, problem=""):
        """A fault that was tried; `problem` says what was wrong with the answer."""
        self["tried"] += 1
        self["answered"] += bool(answered) and not lost
        self["lost"] += lost
        if (not answered or lost) and not self["problem"]:
            self["problem"] = problem or "not answered"

    def take(self, line):
        """A tally of crash_tool."""
        for name in ("tried", "answered", "lost"):
            self[name] += line[name]
        self["problem"] = self["problem"] or line["problem"]


def run(program, *arguments, fault=None, text=None, before=None):
    """Runs a program to its end: a CompletedProcess."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FIELDPRINT_BACKEND", "FIELDPRINT_FAULT")}
    if fault:
        environment["FIELDPRINT_FAULT"] = fault
    return subprocess.run([program, *map(str, arguments)], env=environment, input=text, text=True, capture_output=True,
                          timeout=TIMEOUT_S, check=False, preexec_fn=before)


def tool(*arguments, **options):
    """Runs crash_tool."""
    return run(TOOL, *arguments, **options)


def fieldprint(*arguments, **options):
    """Runs fieldprint."""
    return run(BINARY, *arguments, **options)


def check(folder, acknowledged):
    """(lost, problem) of a ledger about which these lines were printed."""
    if not os.path.exists(os.path.join(folder, "ledger.sqlite")):
        lost = acknowledged.count("ACK ")
        return lost, "the ledger is not there" if lost else ""
    ended = tool("check", folder, text=acknowledged)
    if not ended.stdout:
        return 0, ended.stderr.strip() or f"check ended with {ended.returncode}"
    line = json.loads(ended.stdout)
    return line["lost"], line["problem"]


def points():
    """Names of the places where a fault can be injected, and whether a call can be made to fail there."""
    lines = tool("points").stdout.split("\n")
    return [(line.split()[0], line.split()[1] == "1") for line in lines if line]
