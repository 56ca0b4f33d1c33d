"""Disks that lose, tear, refuse or alter what is written."""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3

from crash_common import check, fieldprint, tool

TABLES = ("leaves", "nodes", "tree", "checkpoints")


def power(campaign):
    """The power fails between any two calls to the file system."""
    row = campaign.row("power cut between two file system calls, writes lost or torn")
    for seed in (1,) if campaign.quick else (1, 2, 3):
        ended = tool("power", campaign.folder(), 23 if campaign.quick else 1, seed)
        row.take(json.loads(ended.stdout))


def lying(campaign):
    """A disk that flushes nothing: the campaign must find records lost, or its power cuts prove nothing."""
    row = campaign.row("the campaign notices a disk that does not flush")
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
        folder = campaign.folder()

        def limit(most=kib << 10):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        ended = tool("append", folder, 60, kib, before=limit)
        again = tool("append", folder, 2, 1)
        lost, problem = check(folder, ended.stdout + "\n" + again.stdout)
        if ended.returncode not in (0, 3):
            problem = problem or f"status {ended.returncode}: {ended.stderr.strip()}"
        if ended.returncode == 0 and kib < 100:
            problem = problem or "the limit was not felt"
        if again.returncode != 0:
            problem = problem or f"the next process failed: {again.stderr.strip()}"
        row.count(not problem, lost, f"{kib} KiB: {problem}")


def grown(campaign, appends=40, seed=77):
    """A ledger without a write-ahead log beside it."""
    folder = campaign.folder()
    ended = tool("append", folder, appends, seed)
    if ended.returncode != 0:
        raise AssertionError(ended.stderr)
    return folder


def audit(folder, *arguments):
    """(status, what it prints) of an audit."""
    ended = fieldprint("ledger", "audit", "--data", folder, *arguments)
    return ended.returncode, ended.stdout + ended.stderr


def flip(value, chance):
    """The value with one bit altered."""
    if isinstance(value, int):
        return value ^ 1 << chance.randrange(8)
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flipped_bits(campaign):
    """A bit flips in a value of each table."""
    source = grown(campaign)
    chance = random.Random(4)
    for table in TABLES:
        row = campaign.row(f"one bit altered in table {table}")
        with sqlite3.connect(os.path.join(source, "ledger.sqlite")) as connection:
            columns = [line[1] for line in connection.execute(f"PRAGMA table_info({table})")]
            columns = [column for column in columns if column != "one"]
        connection.close()
        for _ in range(6 if campaign.quick else 60):
            folder = campaign.folder()
            shutil.copytree(source, folder, dirs_exist_ok=True)
            connection = sqlite3.connect(os.path.join(folder, "ledger.sqlite"))
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            names = [line[1] for line in connection.execute(f"PRAGMA table_info({table})")]
            victim, column = chance.choice(rows), chance.choice(columns)
            value = flip(victim[names.index(column)], chance)
            if table == "checkpoints" and column == "note":
                value = value.decode("latin-1")
            where = " AND ".join(f"{name} = ?" for name in names if name != "bytes" and name != "hash" and name != "note")
            keys = [victim[names.index(name)] for name in names if name not in ("bytes", "hash", "note")]
            try:
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", [value, *keys])
            except sqlite3.IntegrityError:  # another row has that key
                connection.close()
                shutil.rmtree(folder)
                continue
            connection.commit()
            connection.close()
            status, said = audit(folder)
            row.count(status == 1 and "NOT SOUND" in said, problem=f"{table}.{column} of {keys}: status {status}: {said}")
            shutil.rmtree(folder)


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
    name = "ledger.sqlite"
    with open(os.path.join(source, name), "rb") as file:
        good = file.read()
    before = rows_of(os.path.join(source, name))
    chance = random.Random(9)
    for _ in range(12 if campaign.quick else 400):
        folder = campaign.folder()
        shutil.copytree(source, folder, dirs_exist_ok=True)
        place = chance.randrange(100) if chance.randrange(8) == 0 else chance.randrange(len(good))
        bad = bytearray(good)
        bad[place] ^= 1 << chance.randrange(8)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(bad)
        status, said = audit(folder)
        same = status == 0 and rows_of(os.path.join(folder, name)) == before
        harmless += same
        row.count(same or status in (1, 2), problem=f"byte {place}: status {status}: {said}")
        shutil.rmtree(folder)
    row["what"] += f" ({harmless} harmless)"


KINDS = [power, lying, full_or_failing, limited, flipped_bits, altered_file]
