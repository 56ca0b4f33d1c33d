"""What the kinds of faults share: places for ledgers, the two programs, and the table."""

import itertools
import json
import os
import subprocess

from places import PostgresPlace, SqlitePlace

BINARY = os.environ.get("FIELDPRINT_BINARY", "")
TOOL = os.environ.get("FIELDPRINT_CRASH_TOOL", "")
KILLED = -9
TIMEOUT_S = 300
INJECTED = "fault injected\n"


class Campaign:
    """A folder for everything, the kind of ledger, and the rows of the table."""

    def __init__(self, folder, quick, server=None):
        self.base = folder
        self.quick = quick
        self.server = server
        self.rows = []
        self.numbers = itertools.count()

    def folder(self):
        """A new folder."""
        path = os.path.join(self.base, f"{'p' if self.server else 's'}{next(self.numbers)}")
        os.mkdir(path)
        return path

    def place(self):
        """A new place for a ledger."""
        folder = self.folder()
        return PostgresPlace(folder, self.server, self.server.create()) if self.server else SqlitePlace(folder)

    def row(self, what, control=False):
        """A new row, to be counted into. A control is no fault: it shows that the others can be believed."""
        row = Row("PostgreSQL" if self.server else "SQLite", what, control)
        self.rows.append(row)
        return row


class Row(dict):
    """Counts of one kind of fault, or of a control."""

    def __init__(self, store, what, control):
        super().__init__(store=store, what=what, control=control, tried=0, answered=0, lost=0, problem="")

    def count(self, answered, lost=0, problem=""):
        """One that was tried; `problem` says what was wrong with the answer."""
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


def environment(fault):
    """Of a program that may be told to meet a fault."""
    variables = {name: value for name, value in os.environ.items() if name not in ("FIELDPRINT_BACKEND", "FIELDPRINT_FAULT")}
    return {**variables, "FIELDPRINT_FAULT": fault} if fault else variables


def run(program, *arguments, fault=None, text=None, before=None):
    """Runs a program to its end: a CompletedProcess."""
    return subprocess.run([program, *map(str, arguments)], env=environment(fault), input=text, text=True, capture_output=True,
                          timeout=TIMEOUT_S, check=False, preexec_fn=before)


def tool(*arguments, **options):
    """Runs crash_tool."""
    return run(TOOL, *arguments, **options)


def fieldprint(*arguments, **options):
    """Runs fieldprint."""
    return run(BINARY, *arguments, **options)


def check(place, acknowledged):
    """(lost, problem) of a ledger about which these lines were printed."""
    if not place.begun():
        lost = acknowledged.count("ACK ")
        return lost, "the ledger is not there" if lost else ""
    ended = tool("check", place.word, text=acknowledged)
    if not ended.stdout:
        return 0, ended.stderr.strip() or f"check ended with {ended.returncode}"
    line = json.loads(ended.stdout)
    return line["lost"], line["problem"]


def grown(campaign, appends=40, seed=77):
    """A ledger that nobody has open."""
    place = campaign.place()
    ended = tool("append", place.word, appends, seed)
    if ended.returncode != 0:
        raise AssertionError(ended.stderr)
    return place


def audit(place, *arguments):
    """(status, what it prints) of an audit."""
    ended = fieldprint("ledger", "audit", *place.options, *arguments)
    return ended.returncode, ended.stdout + ended.stderr


def points():
    """Names of the places where a fault can be injected, and whether a call can be made to fail there."""
    lines = tool("points").stdout.split("\n")
    return [(line.split()[0], line.split()[1] == "1") for line in lines if line]
