"""Processes that die, and calls that fail, at every durable step."""

import glob
import json
import os

from crash_common import KILLED, check, fieldprint, points, tool

APPENDS = 7
MOST_PASSES = 40


def appends(campaign, fault, seed, command=("append", APPENDS)):
    """Runs the appender with a fault in a new folder: its end, and what is wrong afterwards."""
    folder = campaign.folder()
    ended = tool(command[0], folder, *command[1:], seed, fault=fault)
    said = ended.stdout
    # The next process goes on where the last one ended.
    again = tool("append", folder, 2, seed + 1)
    lost, problem = check(folder, said + "\n" + again.stdout)
    if again.returncode != 0:
        problem = problem or f"the next process failed: {again.stderr.strip()}"
    return ended, lost, problem


def commits(campaign, fault, seed):
    """The same with an engine that records every commit and verdict."""
    return appends(campaign, fault, seed, ("commits",))


def run_command(model, folder, number):
    """A run of three answers with receipts."""
    prompts = os.path.join(folder, f"prompts-{number}.jsonl")
    with open(prompts, "w", encoding="utf-8") as file:
        for i in range(3):
            file.write(json.dumps({"id": f"r{number}q{i}", "prompt": f"a b {i}", "n": 2 + i}) + "\n")
    anchor = os.path.join(folder, f"anchor-{number}.txt")
    with open(anchor, "w", encoding="utf-8") as file:
        file.write(f"a b c {number}")
    return ["run", "-m", model, "--anchor", anchor, "--prompts", prompts, "--data", os.path.join(folder, "data"), "--receipts",
            os.path.join(folder, "receipts"), "--backend", "scalar", "--json"]


def answers(campaign, model, fault):
    """The same with `fieldprint run`: every receipt that is there must verify and stand in the ledger."""
    folder = campaign.folder()
    ended = fieldprint(*run_command(model, folder, 0), fault=fault)
    again = fieldprint(*run_command(model, folder, 1))
    problem = "" if again.returncode == 0 else f"the next run failed: {again.stderr.strip()}"
    # What was handed out: receipts that a line on stdout names, and all that lie there.
    named = [json.loads(line)["receipt"] for line in ended.stdout.splitlines() if line.endswith("}")]
    present = sorted(glob.glob(os.path.join(folder, "receipts", "*.receipt")))
    lost = sum(path not in present for path in named if path)
    key = os.path.join(folder, "data", "ledger.pub")
    if present:
        verified = fieldprint("verify", *present, "-m", model, "--key", key, "--backend", "scalar", "--json")
        if verified.returncode != 0:
            problem = problem or f"receipts do not verify: {verified.stdout}{verified.stderr}"
    for path in present:
        proved = fieldprint("ledger", "prove", "--data", os.path.join(folder, "data"), "--receipt", path)
        lost += proved.returncode != 0
    audited = fieldprint("ledger", "audit", "--data", os.path.join(folder, "data"))
    if audited.returncode != 0:
        problem = problem or f"audit: {audited.stdout}{audited.stderr}"
    return ended, lost, problem


def proposal(campaign, fault):
    """An anchor is proposed, in a ledger that is there."""
    folder = campaign.folder()
    before = tool("append", folder, 2, 3)
    text = os.path.join(folder, "anchor.txt")
    with open(text, "w", encoding="utf-8") as file:
        file.write("be kind")
    ended = fieldprint("anchor", "propose", text, "--data", folder, fault=fault)
    lost, problem = check(folder, before.stdout)
    # What the ledger says of the anchor is what is done next: propose it, or nothing.
    again = fieldprint("anchor", "propose", text, "--data", folder)
    listed = fieldprint("anchor", "list", "--data", folder, "--json")
    if listed.returncode != 0 or listed.stdout.count('"state":"candidate"') != 1:
        problem = problem or f"the anchor is not proposed once: {again.stderr}{listed.stdout}{listed.stderr}"
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


def sweep(campaign, row, name, kind, start, wanted):
    """One fault after another at a place, at each pass until the process does not come there: whether it ever did."""
    reached = False
    passes = range(1, MOST_PASSES) if not campaign.quick else (1, 2, 5)
    for number in passes:
        ended, lost, problem = start(f"{kind}:{name}:{number}", number)
        if ended.returncode == 0:
            if not problem:
                break
        reached = True
        if ended.returncode != wanted:
            problem = problem or f"{kind}:{name}:{number} ended with {ended.returncode}: {ended.stderr.strip()}"
        row.count(not problem, lost, f"{kind} at {name}, pass {number}: {problem}")
    return reached


def kill_and_fail(campaign):
    """kill -9, and an error, at every durable step that has a name."""
    model = tiny_model(campaign)
    killed_appender = campaign.row("kill -9 of an appending process at each durable step")
    killed_run = campaign.row("kill -9 of `fieldprint run` at each durable step")
    killed_engine = campaign.row("kill -9 of an engine that commits, at each durable step")
    killed_anchor = campaign.row("kill -9 of `fieldprint anchor propose` at each durable step")
    failed_appender = campaign.row("a call that fails, in an appending process")
    failed_run = campaign.row("a call that fails, in `fieldprint run`")
    failed_anchor = campaign.row("a call that fails, in `fieldprint anchor propose`")
    failed_engine = campaign.row("a call that fails, in an engine that commits")
    never = campaign.row("durable steps that were reached")
    for name, can_fail in points():
        reached = sweep(campaign, killed_appender, name, "kill", lambda fault, n: appends(campaign, fault, 10 * n), KILLED)
        reached |= sweep(campaign, killed_run, name, "kill", lambda fault, n: answers(campaign, model, fault), KILLED)
        reached |= sweep(campaign, killed_engine, name, "kill", lambda fault, n: commits(campaign, fault, n), KILLED)
        reached |= sweep(campaign, killed_anchor, name, "kill", lambda fault, n: proposal(campaign, fault), KILLED)
        if can_fail:
            sweep(campaign, failed_anchor, name, "fail", lambda fault, n: proposal(campaign, fault), 3)
            sweep(campaign, failed_appender, name, "fail", lambda fault, n: appends(campaign, fault, 10 * n), 3)
            sweep(campaign, failed_engine, name, "fail", lambda fault, n: commits(campaign, fault, n), 3)
            sweep(campaign, failed_run, name, "fail", lambda fault, n: answers(campaign, model, fault), 3)
        never.count(reached, problem=f"no process came to {name}")


KINDS = [kill_and_fail]
