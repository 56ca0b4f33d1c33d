#!/usr/bin/env python3
"""Checks protocol.pml and barriers.pml with spin: every property in every size, that a broken rule is found, and that the
code follows the protocol.

usage: check.py [--trace-test PROGRAM] [--traces N] [--json]

Exit status 0: all as it should be; 1: a property fails, or a broken rule is not found; 77: there is no spin.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "protocol.pml")
BARRIERS = os.path.join(HERE, "barriers.pml")
SKIPPED = 77
MEMORY_MIB = 2000

SAFETY = ("no effect without a validated cause, no use of a revoked anchor, acknowledged commits survive, each is in the "
          "ledger once")
PROGRESS = "every sealed commit is validated or refuted, or its trajectory lost in a crash"
# Sizes: trajectories, commits of each, effects, crashes, appends that give an error; progress is of one commit of one
# trajectory, the first if it does not say.
SAFETY_SIZES = ({"NT": 1, "NC": 3, "NE": 2, "CRASHES": 2}, {"NT": 2, "NC": 2, "NC1": 1, "NE": 1, "CRASHES": 1},
                {"NT": 1, "NC": 3, "NE": 1, "CRASHES": 1, "LOSSES": 2})
PROGRESS_SIZES = ({"NT": 1, "NC": 3, "PROGRESS_N": 0}, {"NT": 1, "NC": 3, "PROGRESS_N": 2},
                  {"NT": 2, "NC": 1, "PROGRESS_N": 0}, {"NT": 2, "NC": 1, "PROGRESS_N": 0, "PROGRESS_T": 1},
                  {"NT": 1, "NC": 2, "PROGRESS_N": 0, "LOSSES": 1})

# A rule that is broken, and the words of the assertion that must notice.
SURVIVES, CAUSED, UNREVOKED, AHEAD = r"promised\[i\]<=led", r"vled", r"promised_revoked", r"sealed.*validated.*<2"
ONCE = r"led\[.*\]<=sealed"
BROKEN = (("ACKNOWLEDGE_EARLY", SURVIVES), ("TAIL_NOT_FLUSHED", SURVIVES), ("RELEASE_DURABLE", CAUSED),
          ("REVOKE_KEEPS_COMMITS", CAUSED), ("VALIDATE_UNREAD", CAUSED), ("RELEASE_REVOKED", UNREVOKED),
          ("NO_POLL", UNREVOKED), ("REVOCATION_ACKNOWLEDGED_EARLY", UNREVOKED), ("RUN_AFTER_STOP", UNREVOKED),
          ("RECOVER_BLIND", UNREVOKED), ("OPEN_UNCHECKED", UNREVOKED), ("USE_UNREAD", UNREVOKED), ("RUN_AHEAD", AHEAD),
          ("APPEND_BLIND", ONCE))
BROKEN_PROGRESS = ("CLOSED_UNVALIDATED", "STOPPED_UNVALIDATED")

# How kernels hand shared memory over: the way, sizes, the words of a right reading, and rules to break.
HANDOVERS = (
    ("TURNS", ({}, {"WARPS": 3}, {"LANES": 3}, {"LANES": 3, "EVERY_LANE_ARRIVES": 1}), r"(reference|row\[l\])==\(\(k",
     ("TURN_NOT_AWAITED", "PARITY_KEPT", "PASSED_ON_ALONE")),
    ("FEEDER", ({}, {"LANES": 3}), r"half\[h\]==",
     ("TILE_NOT_AWAITED", "REFILLED_WHILE_READ", "PARITY_KEPT")),
    ("ROWS", ({"UNITS": 2}, {"UNITS": 2, "TILES": 2, "CONSUMERS": 1}, {"UNITS": 2, "EVERY_LANE_ARRIVES": 1}), r"pending>0|info\[|queries\[|unit\[",
     ("UNIT_OVERWRITTEN", "INFO_OVERWRITTEN", "TOLD_APART", "QUERIES_OVERWRITTEN", "RELEASED_EARLY")))

TRACE_SIZE = {"NT": 2, "NC": 3, "NC1": 3, "NE": 2, "CRASHES": 2, "BAD": 2, "LOSSES": 3, "TRACE": 1}
TRACE_STEPS = 3000
TRANSITIONS = ("open", "seal", "acknowledge", "validate", "refute", "revoke", "request", "release", "withhold", "close",
               "crash", "recover")


class Failed(Exception):
    """What is not as it should be."""


def flags(size, bug=None):
    """Arguments that define a size, and break a rule."""
    return [f"-D{name}={value}" for name, value in size.items()] + ([f"-DBUG_{bug}"] if bug else [])


def processor_time():
    """Seconds that processes of this one have computed: what else the machine does leaves them alone."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def explore(folder, size, bug=None, progress=False, model=MODEL):
    """Explores all states: (errors, states, MiB, processor seconds, what spin says). A search that was cut short is no answer."""
    claim = ["-DPROGRESS", *([] if "PROGRESS_T" in size else ["-DPROGRESS_T=0"])] if progress else []
    subprocess.run(["spin", "-a", *flags(size, bug), *claim, model],
                   cwd=folder, check=True, stdout=subprocess.DEVNULL)
    options = ["-DNFAIR=3"] if progress else ["-DSAFETY", "-DNOCLAIM"]
    subprocess.run(["cc", "-O2", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MIB}", *options, "-o", "pan", "pan.c"], cwd=folder,
                   check=True)
    begin = processor_time()
    out = subprocess.run(["./pan", "-m100000", *(["-a", "-f"] if progress else [])], cwd=folder, check=True,
                         capture_output=True, text=True).stdout
    seconds = processor_time() - begin
    errors = re.search(r"errors: (\d+)", out)
    cut = re.search(r"out of memory|search depth too small|max search depth|Interrupted", out)
    if errors is None or cut:
        raise Failed(f"the search was cut short: {cut.group() if cut else out[-500:]}")
    memory = re.search(r"([\d.]+)\s+total actual memory usage", out)
    return (int(errors.group(1)), int(re.search(r"(\d+) states, stored", out).group(1)),
            float(memory.group(1)) if memory else 0.0, seconds, out)


def simulate(folder, seed, bug=None):
    """What a random run prints."""
    out = subprocess.run(["spin", "-T", f"-n{seed}", f"-u{TRACE_STEPS}", *flags(TRACE_SIZE, bug), MODEL], cwd=folder,
                         check=False, capture_output=True, text=True).stdout
    kept = [line for line in out.splitlines() if line.split(" ", 1)[0] in ("TRACE", "STATE", "GONE", "EFFECT")]
    return "\n".join([f"BEGIN {seed}", *kept, ""])


def follow(program, traces):
    """The program's exit status and output for these traces."""
    ended = subprocess.run([program], input="".join(traces), capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout.strip()


class Check:
    """Runs everything and keeps the table."""

    def __init__(self, folder):
        self.folder = folder
        self.rows = []

    def row(self, what, result, states=0, memory=0.0, seconds=0.0):
        """Keeps and prints a line of the table."""
        self.rows.append({"what": what, "result": result, "states": states, "mib": round(memory), "seconds": round(seconds, 1)})
        print(f"{what:78} {result:10} {states:>10,} states {memory:6.0f} MiB {seconds:6.1f} s", file=sys.stderr, flush=True)

    def property(self, name, size, progress):
        """A property that must hold."""
        errors, states, memory, seconds, out = explore(self.folder, size, progress=progress)
        sizes = " ".join(f"{key}={value}" for key, value in size.items())
        if errors:
            raise Failed(f"{name} ({sizes}) does not hold: {out}")
        self.row(f"{'progress' if progress else 'safety'} {sizes}", "holds", states, memory, seconds)

    def mutation(self, bug, words, progress=False):
        """A broken rule, which must be found, and for the right reason."""
        size = {"NT": 1, "NC": 3, **({"PROGRESS_N": 0} if progress else {"LOSSES": 1})}
        self.refuted(bug, words, explore(self.folder, size, bug, progress))

    def handover(self, way, sizes, words, bugs):
        """One way of handing memory over: nobody reads what is not there, nobody waits forever, and this can fail."""
        for size in sizes:
            errors, states, memory, seconds, out = explore(self.folder, {way: 1, **size}, model=BARRIERS)
            named = " ".join([way, *(f"{key}={value}" for key, value in size.items())])
            if errors:
                raise Failed(f"handing over ({named}) goes wrong: {out}")
            self.row(f"handover {named}", "holds", states, memory, seconds)
        for bug in bugs:
            self.refuted(f"{way} {bug}", words, explore(self.folder, {way: 1, **sizes[0]}, bug, model=BARRIERS))

    def refuted(self, bug, words, explored):
        """Takes it that spin has found what is broken."""
        errors, states, memory, seconds, out = explored
        said = re.search(r"pan:\d+: (.*)", out)
        if not errors or not said or not re.search(words, said.group(1)):
            raise Failed(f"broken {bug} is not found as it should: {said.group(1) if said else 'no error'}")
        self.row(f"broken {bug}", "refuted", states, memory, seconds)

    def traces(self, program, count):
        """Simulations that the code must follow, and of broken models some that it must not."""
        begin = processor_time()
        status, said = follow(program, [simulate(self.folder, seed) for seed in range(1, count + 1)])
        if status != 0:
            raise Failed(f"model and code differ: {said}")
        counted = said.split()
        numbers = dict(zip(counted[::2], map(int, counted[1::2])))
        rare = [name for name in TRANSITIONS if numbers.get(name, 0) < count // 20]
        if rare:
            raise Failed(f"the traces hardly show {', '.join(rare)}: {said}")
        self.row(f"traces followed by the code: {said}", "alike", seconds=processor_time() - begin)
        for bug in ("RUN_AHEAD", "RELEASE_DURABLE", "REVOKE_KEEPS_COMMITS", "OPEN_UNCHECKED"):
            status, said = follow(program, [simulate(self.folder, seed, bug) for seed in range(1, 41)])
            if status != 1:
                raise Failed(f"the code follows the traces of broken {bug} (status {status})")
            self.row(f"traces of broken {bug}", "differ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace-test", help="the program protocol_trace_test; without it no traces are made")
    parser.add_argument("--traces", type=int, default=250)
    parser.add_argument("--json", action="store_true", help="the table as one JSON object on stdout")
    options = parser.parse_args()
    if shutil.which("spin") is None:
        print("model_check skipped: there is no spin; tools/setup --tests installs it", file=sys.stderr)
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="fieldprint-spin-") as folder:
        check = Check(folder)
        try:
            for size in SAFETY_SIZES:
                check.property(SAFETY, size, progress=False)
            for size in PROGRESS_SIZES:
                check.property(PROGRESS, size, progress=True)
            for handover in HANDOVERS:
                check.handover(*handover)
            for bug, words in BROKEN:
                check.mutation(bug, words)
            for bug in BROKEN_PROGRESS:
                check.mutation(bug, "acceptance cycle", progress=True)
            if options.trace_test:
                check.traces(options.trace_test, options.traces)
        except Failed as failure:
            print(f"model_check: {failure}", file=sys.stderr)
            return 1
        if options.json:
            print(json.dumps(check.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
