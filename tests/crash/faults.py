#!/usr/bin/env python3
"""The campaign of faults: tries every kind that we can make, on ledgers of both kinds, and counts what was tried, what was
answered as it must be (survived or detected), and how many acknowledged records were lost. Controls, which are no faults and
not in the sums, show that the faults are felt. Exit status 0: all answered and none lost.

usage: faults.py [--quick] [--json] [--only sqlite|postgresql]

FIELDPRINT_BINARY and FIELDPRINT_CRASH_TOOL name the programs. --quick takes a part of each kind. Without PostgreSQL's
package its part is left out, which is said.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "end_to_end")]

import kinds_disk
import kinds_engine
import kinds_kill
import kinds_ledger
import kinds_server
from crash_common import Campaign
from private_postgres import Server

SQLITE = kinds_kill.KINDS + kinds_disk.KINDS + kinds_ledger.KINDS + kinds_engine.KINDS
POSTGRESQL = kinds_kill.KINDS + kinds_server.KINDS + kinds_ledger.FORGERIES


def totals(rows):
    """The sums of the rows of faults."""
    return {name: sum(row[name] for row in rows if not row["control"]) for name in ("tried", "answered", "lost")}


def print_table(rows, seconds):
    """The rows as a table for people, a section for each kind of ledger."""
    def line(what, row, end=""):
        print(f"{what:74} {row['tried']:>7,} {row['answered']:>9,} {row['lost']:>5}{end}")

    for store in dict.fromkeys(row["store"] for row in rows):
        section = [row for row in rows if row["store"] == store]
        print(f"{store:74} {'tried':>7} {'answered':>9} {'lost':>5}")
        for row in section:
            if not row["control"]:
                line(f"  {row['what']}", row)
        line(f"  all of {store}", totals(section), f"   {seconds[store]:.0f} s")
        for row in section:
            if row["control"]:
                line(f"  control: {row['what']}", row)
    line("all", totals(rows), f"   {sum(seconds.values()):.0f} s")
    for row in rows:
        if row["problem"]:
            print(f"NOT ANSWERED: {row['store']}, {row['what']}: {row['problem']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), help="one kind of ledger")
    options = parser.parse_args()
    # In memory where that is possible: a kill loses no page of a file, and power cuts are made from what was recorded.
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="fieldprint-faults-", dir=base)
    os.environ["TMPDIR"] = folder  # what killed processes leave there goes with it
    rows, seconds = [], {}
    try:
        for store, kinds in (("SQLite", SQLITE), ("PostgreSQL", POSTGRESQL)):
            if options.only not in (None, store.lower()):
                continue
            begin = time.monotonic()
            server = Server.begin(base) if store == "PostgreSQL" else None
            if store == "PostgreSQL" and server is None:
                print("PostgreSQL is left out: no server is installed; run tools/setup --tests", file=sys.stderr)
                continue
            campaign = Campaign(folder, options.quick, server)
            for kind in kinds:
                kind(campaign)
            if server is not None:
                server.stop()
            rows += campaign.rows
            seconds[store] = time.monotonic() - begin
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps({"rows": rows, "all": totals(rows), "seconds": {store: round(each) for store, each in seconds.items()}}))
    else:
        print_table(rows, seconds)
    return 0 if rows and all(row["tried"] and row["tried"] == row["answered"] and not row["lost"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
