#!/usr/bin/env python3
"""The campaign of faults: tries every kind that we can make, and counts what was tried, what was answered as it must
be (survived or detected), and how many acknowledged records were lost. Exit status 0: all answered and none lost.

usage: faults.py [--quick] [--json]

FIELDPRINT_BINARY and FIELDPRINT_CRASH_TOOL name the programs. --quick takes a part of each kind.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kinds_disk
import kinds_engine
import kinds_kill
import kinds_ledger
from crash_common import Campaign


def print_table(rows, seconds):
    """The rows as a table for people."""
    print(f"{'fault':62} {'tried':>7} {'answered':>9} {'lost':>5}")
    for row in rows:
        print(f"{row['what']:62} {row['tried']:>7,} {row['answered']:>9,} {row['lost']:>5}")
    print(f"{'all':62} {sum(row['tried'] for row in rows):>7,} {sum(row['answered'] for row in rows):>9,} "
          f"{sum(row['lost'] for row in rows):>5}   {seconds:.0f} s")
    for row in rows:
        if row["problem"]:
            print(f"NOT ANSWERED: {row['what']}: {row['problem']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of each kind")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    # In memory where that is possible: a kill loses no page of a file, and power cuts are made from what was recorded.
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="fieldprint-faults-", dir=base)
    begin = time.monotonic()
    try:
        campaign = Campaign(folder, options.quick)
        for kind in kinds_kill.KINDS + kinds_disk.KINDS + kinds_ledger.KINDS + kinds_engine.KINDS:
            kind(campaign)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - begin
    if options.json:
        print(json.dumps({"rows": campaign.rows, "seconds": round(seconds)}))
    else:
        print_table(campaign.rows, seconds)
    return 0 if all(row["tried"] and row["tried"] == row["answered"] and not row["lost"] for row in campaign.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
