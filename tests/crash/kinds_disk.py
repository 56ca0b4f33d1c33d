"""Disks that lose, tear, refuse or alter what is written."""

import json
import random
import resource
import signal
import sqlite3

from crash_common import audit, check, grown, tool
from places import TABLES


def power(campaign):
    """The power fails between any two calls to the file system."""
    row = campaign.row("power cut between two file system calls, writes lost or torn")
    for seed in (1,) if campaign.quick else (1, 2, 3):
        ended = tool("power", campaign.folder(), 23 if campaign.quick else 1, seed)
        row.take(json.loads(ended.stdout))


def lying(campaign):
    """A disk that flushes nothing: the campaign must find records lost, or its power cuts prove nothing."""
    row = campaign.row("the campaign notices a disk that does not flush", control=True)
    line = json.loads(tool("lying-disk", campaign.folder(), 41, 1).stdout)
    row.count(line["lost"] > 0, problem="no record was lost")


def full_or_failing(campaign):
    """A write or a flush fails at any call."""
    row = campaign.row("disk full, or flush that fails, at any call; then power cut")
    ended = tool("disk", campaign.folder(), 41 if campaign.quick else 1, 5)
    row.take(json.loads(ended.stdout))


def limited(campaign):
    """No file may become longer than so many bytes: the process must say so, and lose nothing."""
    row = campaign.row("file size limit (ENOSPC's sibling EFBIG) in a process")
    for kib in range(8, 400, 96 if campaign.quick else 12):
        place = campaign.place()

        def limit(most=kib << 10):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        ended = tool("append", place.word, 60, kib, before=limit)
        again = tool("append", place.word, 2, 1)
        lost, problem = check(place, ended.stdout + "\n" + again.stdout)
        if ended.returncode not in (0, 3):
            problem = problem or f"status {ended.returncode}: {ended.stderr.strip()}"
        if ended.returncode == 0 and kib < 100:
            problem = problem or "the limit was not felt"
        if again.returncode != 0:
            problem = problem or f"the next process failed: {again.stderr.strip()}"
        row.count(not problem, lost, f"{kib} KiB: {problem}")


def flip(value, chance):
    """The value with one bit altered."""
    if isinstance(value, int):
        return value ^ 1 << chance.randrange(8)
    data = bytearray(value)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def alter_bit(campaign, times):
    """A bit flips in a value of each table, as often as that."""
    source = grown(campaign)
    chance = random.Random(4)
    for table, (keys, columns) in TABLES.items():
        row = campaign.row(f"one bit altered in table {table}")
        for _ in range(times):
            place = source.copy(campaign.folder())
            victim, column = chance.choice(place.rows(table)), chance.choice(columns)
            value = flip(victim[columns.index(column)], chance)
            at = [victim[columns.index(name)] for name in keys]
            if place.change([place.update(table, at, column, value)]):
                status, said = audit(place)
                row.count(status == 1 and "NOT SOUND" in said, problem=f"{table}.{column} of {at}: status {status}: {said}")
            place.drop()
    source.drop()


def flipped_bits(campaign):
    """A bit flips in a value of each table."""
    alter_bit(campaign, 6 if campaign.quick else 60)


def rows_of(path):
    """All that a database holds, or None if it cannot be read."""
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        held = [connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES]
        held.append(connection.execute("PRAGMA application_id").fetchall() + connection.execute("PRAGMA user_version").fetchall())
        held.append(connection.execute("PRAGMA integrity_check").fetchall())
        return held
    except sqlite3.Error:
        return None
    finally:
        connection.close()


def altered_file(campaign):
    """A bit flips anywhere in the file: the audit says no, or the ledger's contents are what they were."""
    row = campaign.row("one bit altered anywhere in the database file")
    harmless = 0
    source = grown(campaign)
    with open(source.file, "rb") as file:
        good = file.read()
    before = rows_of(source.file)
    chance = random.Random(9)
    for _ in range(12 if campaign.quick else 400):
        place = source.copy(campaign.folder())
        byte = chance.randrange(100) if chance.randrange(8) == 0 else chance.randrange(len(good))
        bad = bytearray(good)
        bad[byte] ^= 1 << chance.randrange(8)
        with open(place.file, "wb") as file:
            file.write(bad)
        status, said = audit(place)
        same = status == 0 and rows_of(place.file) == before
        harmless += same
        row.count(same or status in (1, 2), problem=f"byte {byte}: status {status}: {said}")
        place.drop()
    row["what"] += f" ({harmless} harmless)"


KINDS = [power, lying, full_or_failing, limited, flipped_bits, altered_file]
