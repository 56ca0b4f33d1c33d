"""Processes that die, and calls that fail, at every durable step."""

import glob
import json
import os

from crash_common import INJECTED, KILLED, check, fieldprint, points, tool

APPENDS = 7
MOST_PASSES = 40


def appends(campaign, start, seed, command=("append", APPENDS)):
    """Runs the appender with a fault in a new place: its end, and what is wrong afterwards."""
    place = campaign.place()
    ended = start(tool, command[0], place.word, *command[1:], seed)
    said = ended.stdout
    # The next process goes on where the last one ended.
    again = tool("append", place.word, 2, seed + 1)
    lost, problem = check(place, said + "\n" + again.stdout)
    if again.returncode != 0:
        problem = problem or f"the next process failed: {again.stderr.strip()}"
    place.drop()
    return ended, lost, problem


def commits(campaign, start, seed):
    """The same with an engine that records every commit and verdict."""
    return appends(campaign, start, seed, ("commits",))


def run_command(model, place, number):
    """A run of three answers with receipts."""
    prompts = os.path.join(place.folder, f"prompts-{number}.jsonl")
    with open(prompts, "w", encoding="utf-8") as file:
        for i in range(3):
            file.write(json.dumps({"id": f"r{number}q{i}", "prompt": f"a b {i}", "n": 2 + i}) + "\n")
    anchor = os.path.join(place.folder, f"anchor-{number}.txt")
    with open(anchor, "w", encoding="utf-8") as file:
        file.write(f"a b c {number}")
    return ["run", "-m", model, "--anchor", anchor, "--prompts", prompts, *place.options, "--receipts",
            os.path.join(place.folder, "receipts"), "--backend", "scalar", "--json"]


def answers(campaign, start, model):
    """The same with `fieldprint run`: every receipt that is there must verify and stand in the ledger."""
    place = campaign.place()
    ended = start(fieldprint, *run_command(model, place, 0))
    again = fieldprint(*run_command(model, place, 1))
    problem = "" if again.returncode == 0 else f"the next run failed: {again.stderr.strip()}"
    # What was handed out: receipts that a line on stdout names, and all that lie there.
    named = [json.loads(line)["receipt"] for line in ended.stdout.splitlines() if line.endswith("}")]
    present = sorted(glob.glob(os.path.join(place.folder, "receipts", "*.receipt")))
    lost = sum(path not in present for path in named if path)
    key = os.path.join(place.folder, "ledger.pub")
    if present:
        verified = fieldprint("verify", *present, "-m", model, "--key", key, "--backend", "scalar", "--json")
        if verified.returncode != 0:
            problem = problem or f"receipts do not verify: {verified.stdout}{verified.stderr}"
    for path in present:
        proved = fieldprint("ledger", "prove", *place.options, "--receipt", path)
        lost += proved.returncode != 0
    audited = fieldprint("ledger", "audit", *place.options)
    if audited.returncode != 0:
        problem = problem or f"audit: {audited.stdout}{audited.stderr}"
    place.drop()
    return ended, lost, problem


def proposal(campaign, start):
    """An anchor is proposed, in a ledger that is there."""
    place = campaign.place()
    before = tool("append", place.word, 2, 3)
    text = os.path.join(place.folder, "anchor.txt")
    with open(text, "w", encoding="utf-8") as file:
        file.write("be kind")
    ended = start(fieldprint, "anchor", "propose", text, *place.options)
    lost, problem = check(place, before.stdout)
    # What the ledger says of the anchor is what is done next: propose it, or nothing.
    again = fieldprint("anchor", "propose", text, *place.options)
    listed = fieldprint("anchor", "list", *place.options, "--json")
    if listed.returncode != 0 or listed.stdout.count('"state":"candidate"') != 1:
        problem = problem or f"the anchor is not proposed once: {again.stderr}{listed.stdout}{listed.stderr}"
    place.drop()
    return ended, lost, problem


def tiny_model(campaign):
    """A model of a few kilobytes."""
    folder = campaign.folder()
    gguf, model = os.path.join(folder, "tiny.gguf"), os.path.join(folder, "tiny.fpm")
    tool("tiny", gguf)
    ended = fieldprint("model", "import", gguf, "-o", model)
    if ended.returncode != 0:
        raise AssertionError(f"the tiny model cannot be imported: {ended.stderr}")
    return model


def injected(kind, name, number):
    """Runs a program that meets a fault."""
    return lambda program, *words: program(*words, fault=f"{kind}:{name}:{number}")


def sweep(campaign, row, name, kind, attempt, wanted):
    """One fault after another at a place, at each pass until the process does not come there: whether it ever did.
    `wanted`: the exit statuses of a process that met the fault."""
    reached = False
    passes = range(1, MOST_PASSES) if not campaign.quick else (1,) if campaign.server else (1, 2, 5)
    for number in passes:
        ended, lost, problem = attempt(injected(kind, name, number), number)
        met = ended.returncode == KILLED or INJECTED in ended.stderr
        if not met and not problem:
            break
        reached = True
        if ended.returncode not in wanted:
            problem = problem or f"{kind}:{name}:{number} ended with {ended.returncode}: {ended.stderr.strip()}"
        row.count(not problem, lost, f"{kind} at {name}, pass {number}: {problem}")
    return reached


def processes(campaign):
    """Those that faults are tried on: what it is called, how it is run with a fault, and how it ends of a call that fails:
    an engine waits for its ledger and tries again."""
    model = tiny_model(campaign)
    return [("an appending process", lambda start, n: appends(campaign, start, 10 * n), (3,)),
            ("`fieldprint run`", lambda start, n: answers(campaign, start, model), (0, 3)),
            ("an engine that commits", lambda start, n: commits(campaign, start, n), (0, 3)),
            ("`fieldprint anchor propose`", lambda start, n: proposal(campaign, start), (3,))]


def ledger_points():
    """Those of the places where a fault can be injected that have to do with a ledger; the others are files, and the same
    whatever the ledger is."""
    return [(name, can_fail) for name, can_fail in points() if name.split(".")[0] not in ("file", "key", "receipt")]


def kill_and_fail(campaign):
    """kill -9, and an error, at every durable step that has a name."""
    tried = [(campaign.row(f"kill -9 of {what} at each durable step"), campaign.row(f"a call that fails, in {what}"), attempt, failed)
             for what, attempt, failed in processes(campaign)]
    never = campaign.row("durable steps that were reached", control=True)
    for name, can_fail in ledger_points() if campaign.server else points():
        reached = False
        for killed_row, failed_row, attempt, failed in tried:
            reached |= sweep(campaign, killed_row, name, "kill", attempt, (KILLED,))
            if can_fail:
                sweep(campaign, failed_row, name, "fail", attempt, failed)
        never.count(reached, problem=f"no process came to {name}")


KINDS = [kill_and_fail]
