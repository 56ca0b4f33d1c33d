"""What happens to a PostgreSQL server, and between it and its clients."""

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from crash_common import INJECTED, TIMEOUT_S, TOOL, audit, check, environment, grown, run, tool
from kinds_disk import alter_bit
from kinds_kill import appends, commits, ledger_points
from places import TABLES, PostgresPlace
from processes import started, stops

MOST_PASSES = 8
NO_SPACE = "No space left on device"


def begun(*words, fault=None):
    """crash_tool in the background."""
    return started([TOOL, *map(str, words)], env=environment(fault), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped(campaign, fault):
    """Runs a program until it stops at a fault; then its server is killed and started again, and it goes on."""
    def start(program, *words):
        del program
        with begun(*words, fault=fault) as process:
            if stops(process):
                campaign.server.kill()
                campaign.server.start()
                process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)
    return start


def killed_server(campaign):
    """kill -9 of the server while a process stands at a durable step."""
    kinds = [("an appending process", lambda start, n: appends(campaign, start, 10 * n), (0, 3)),
             ("an engine that commits", lambda start, n: commits(campaign, start, n), (0,))]
    rows = [campaign.row(f"kill -9 of the server under {what}, at each durable step") for what, _, _ in kinds]
    never = campaign.row("durable steps at which the server was killed", control=True)
    # An anchor's steps are taken by `fieldprint` alone.
    for name in (name for name, _ in ledger_points() if not name.startswith("anchor")):
        reached = False
        for row, (_, attempt, wanted) in zip(rows, kinds):
            for number in range(1, 3 if campaign.quick else MOST_PASSES):
                ended, lost, problem = attempt(stopped(campaign, f"stop:{name}:{number}"), number)
                if INJECTED not in ended.stderr and not problem:
                    break
                reached |= INJECTED in ended.stderr
                # Tables that are being made when the server is lost are not made; the next process makes them.
                if ended.returncode not in (*wanted, *((3,) if "schema" in name else ())):
                    problem = problem or f"ended with {ended.returncode}: {ended.stderr.strip()}"
                row.count(not problem, lost, f"{name}, pass {number}: {problem}")
        never.count(reached, problem=f"no process came to {name}")


class Proxy:
    """Stands between clients and the server, and takes away the answer to a COMMIT: the server has done it, or it is not
    told of it, and the connection is lost."""

    def __init__(self, folder, server, which, before):
        self.server = server
        self.which = which  # the COMMIT, counted from 1 over all connections
        self.before = before  # the server is not told of it
        self.commits = 0
        self.took = False
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        path = os.path.join(folder, ".s.PGSQL.5432")
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        """Takes clients until it is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        """Hands messages on, each whole (PostgreSQL's "Message Flow")."""
        to_server = socket.socket(socket.AF_UNIX)
        to_server.connect(os.path.join(self.server.folder, ".s.PGSQL.5432"))
        lost = threading.Event()
        threading.Thread(target=self.answers, args=(client, to_server, lost), daemon=True).start()
        stream = client.makefile("rb")
        with contextlib.suppress(OSError, struct.error):
            first = stream.read(4)
            to_server.sendall(first + stream.read(struct.unpack("!I", first)[0] - 4))
            while True:
                head = stream.read(5)
                message = head + stream.read(struct.unpack("!I", head[1:])[0] - 4)
                if message[5:] == b"COMMIT\0" and self.is_chosen():
                    lost.set()
                    if not self.before:
                        to_server.sendall(message)
                        time.sleep(0.05)  # it is done when the answer, which nobody reads, is written
                    client.shutdown(socket.SHUT_RDWR)
                    to_server.shutdown(socket.SHUT_RDWR)  # closing says nothing while answers() still reads from it
                    return
                to_server.sendall(message)
        with contextlib.suppress(OSError):
            to_server.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def answers(client, to_server, lost):
        """What the server says."""
        with contextlib.suppress(OSError):
            while data := to_server.recv(1 << 16):
                if lost.is_set():
                    return
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def is_chosen(self):
        """Whether this COMMIT is the one."""
        with self.lock:
            self.commits += 1
            self.took |= self.commits == self.which
            return self.commits == self.which

    def close(self):
        """No more clients."""
        self.listener.close()


def lost_answers(campaign):
    """The connection is lost while the server commits. An engine finds out what became of it."""
    for before in (False, True):
        row = campaign.row(f"connection lost {'before' if before else 'after'} the server has committed, under an engine")
        for which in (2, 4) if campaign.quick else range(2, 40):
            place = campaign.place()
            proxy = Proxy(place.folder, campaign.server, which, before)
            ended = tool("commits", f"{place.folder},{campaign.server.url(place.name, place.folder)}", which)
            proxy.close()
            if not proxy.took:
                break
            lost, problem = check(place, ended.stdout)
            if ended.returncode != 0:
                problem = problem or f"the engine ended with {ended.returncode}: {ended.stderr}"
            row.count(not problem, lost, f"COMMIT {which}: {problem}")
            place.drop()


def heap_files(place):
    """The files of the tables and of their indexes."""
    names = ",".join(f"'{place.table(table)}'" for table in TABLES)
    lines = place.server.query(place.name, "SELECT pg_relation_filepath(c.oid) FROM pg_class c WHERE c.relname IN "
                               f"({names}) OR c.oid IN (SELECT indexrelid FROM pg_index JOIN pg_class t ON t.oid = indrelid "
                               f"WHERE t.relname IN ({names}))")
    return [os.path.join(place.server.data, line) for line in sorted(lines)]


def held(place):
    """All that the tables hold, or None if they cannot be read."""
    try:
        return [place.rows(table) for table in TABLES]
    except (subprocess.CalledProcessError, ValueError):
        return None


def no_worse(place, before):
    """Whether the tables hold what they held. A damaged index may hide an old checkpoint, of which nothing follows: a ledger
    is as sound without it."""
    now = held(place)
    if now is None:
        return False
    checkpoints = list(TABLES).index("checkpoints")
    gone = set(before[checkpoints]) - set(now[checkpoints])
    return set(now[checkpoints]) <= set(before[checkpoints]) and max(before[checkpoints]) not in gone and all(
        rows == before[i] for i, rows in enumerate(now) if i != checkpoints)


def altered_files(campaign):
    """A bit flips in the file of each table and index, while the server is down: the audit says no or cannot read it, or
    the tables hold what they held."""
    row = campaign.row("one bit altered in the file of a table or an index")
    source = grown(campaign)
    before = held(source)
    chance = random.Random(12)
    harmless = 0
    batches, each = (1, 1) if campaign.quick else (4, 6)
    for _ in range(batches):
        victims = []
        for file in range(len(heap_files(source))):
            victims += [(source.copy(campaign.folder()), file) for _ in range(each)]
        files = [heap_files(place)[file] for place, file in victims]
        campaign.server.stop()
        for path in files:
            with open(path, "r+b") as file:
                data = bytearray(file.read())
                used = [i for i, byte in enumerate(data) if byte]  # free room is of no interest
                place = chance.choice(used)
                data[place] ^= 1 << chance.randrange(8)
                file.seek(0)
                file.write(data)
        campaign.server.start()
        for (place, file), path in zip(victims, files):
            campaign.server.start()  # what is damaged may have ended a process of the server's, and so all of them
            status, said = audit(place)
            same = status == 0 and no_worse(place, before)
            harmless += same
            row.count(same or status in (1, 2, 3), problem=f"{os.path.basename(path)} ({file}): status {status}: {said}")
            campaign.server.start()
            place.drop()
    row["what"] += f" ({harmless} harmless)"


@contextlib.contextmanager
def small_disk(campaign):
    """A tablespace on a disk of 16 MiB: its folder, or None where none may be mounted."""
    disk = os.path.join(campaign.server.folder, "small")
    os.mkdir(disk)
    if run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk).returncode != 0:
        yield None
        return
    try:
        space = os.path.join(disk, "space")
        os.mkdir(space, 0o700)
        campaign.server.give(space)
        campaign.server.query("postgres", f"CREATE TABLESPACE small LOCATION '{space}'")
        yield disk
        campaign.server.query("postgres", "CHECKPOINT; DROP TABLESPACE small")
    finally:
        if run("umount", disk).returncode != 0:
            run("umount", "--lazy", disk)  # it goes when nobody uses it any more
            raise AssertionError("the small disk is still in use")


def waits_for_room(server, process, refusals):
    """Whether the server tells a process, its only client, that there is no room, as it has told others `refusals` times, and
    the process still waits a second later."""
    end = time.monotonic() + TIMEOUT_S
    while server.told().count(NO_SPACE) == refusals:
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.02)
    time.sleep(1)
    return process.poll() is None


def full_disk(campaign):
    """The server's disk is full. An appender says so; an engine waits until there is room."""
    with small_disk(campaign) as disk:
        if disk is None:
            print("the server's full disk is left out: only root may mount a small one", file=sys.stderr)
            return
        row = campaign.row("the server's disk is full, and later has room")
        for seed in range(1 if campaign.quick else 5):
            folder = campaign.folder()
            place = PostgresPlace(folder, campaign.server, campaign.server.create(tablespace="small"))
            said = tool("append", place.word, 3, 1000 + seed).stdout
            ballast = os.path.join(disk, "ballast")
            with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 12)):
                    pass
            full = tool("append", place.word, 400, 2000 + seed)
            refusals = campaign.server.told().count(NO_SPACE)
            with begun("commits", place.word, seed) as engine:
                waits = waits_for_room(campaign.server, engine, refusals)
                os.unlink(ballast)
                out, err = engine.communicate(timeout=TIMEOUT_S)
            lost, problem = check(place, "\n".join((said, full.stdout, out)))
            if full.returncode != 3 or NO_SPACE not in full.stderr:
                problem = problem or f"the appender felt no full disk: {full.returncode}: {full.stderr}"
            if not waits or engine.returncode != 0:
                problem = problem or f"the engine did not wait: {engine.returncode}: {err}"
            row.count(not problem, lost, problem)
            place.drop()


def flipped_bits(campaign):
    """A bit flips in a value of each table."""
    alter_bit(campaign, 3 if campaign.quick else 40)


KINDS = [killed_server, lost_answers, flipped_bits, altered_files, full_disk]
