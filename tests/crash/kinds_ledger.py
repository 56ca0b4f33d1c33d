"""Ledgers that were forged: forks, replayed and reordered records, signatures."""

import hashlib
import json
import os

from crash_common import audit, fieldprint, grown, tool


def forged_signatures(campaign):
    """Signatures and signed checkpoints that nobody made."""
    for command in ("signatures", "checkpoints"):
        line = json.loads(tool(command).stdout)
        campaign.row(line["what"]).take(line)


def succeed(*arguments):
    """The output of a command that must succeed."""
    ended = fieldprint(*arguments)
    if ended.returncode != 0:
        raise AssertionError(f"{arguments}: {ended.stderr}")
    return ended.stdout


def forks(campaign):
    """Two readers are shown two ledgers by one key that begin alike."""
    row = campaign.row("forked ledger shown to two readers")
    honest_row = campaign.row("forks that are sound in themselves, and honest proofs", control=True)
    for seed in range(2 if campaign.quick else 12):
        left = grown(campaign, 6 + seed, 100 + seed)
        right = left.copy(campaign.folder())
        tool("append", left.word, 3, 200 + seed)
        tool("append", right.word, 3 + seed % 3, 300 + seed)
        notes = {}
        for side in (left, right):
            notes[side] = os.path.join(side.folder, "note")
            with open(notes[side], "w", encoding="utf-8") as file:
                file.write(succeed("ledger", "checkpoint", *side.options))
        sizes = {side: json.loads(succeed("ledger", "checkpoint", *side.options, "--json"))["size"] for side in (left, right)}
        for mine, other in ((left, right), (right, left)):
            # Either ledger is sound in itself, and is not with the other's checkpoint held against it.
            status, said = audit(mine)
            honest_row.count(status == 0, problem=f"a fork is not sound in itself: {said}")
            status, said = audit(mine, "--checkpoint", notes[other])
            row.count(status == 1 and "the published checkpoint" in said, problem=f"the other's checkpoint passes: {said}")
        # No proof leads from one to the other.
        small, large = sorted((left, right), key=lambda side: sizes[side])
        proof = json.loads(succeed("ledger", "prove", *large.options, "--from", sizes[small]))
        honest = os.path.join(large.folder, "proof.json")
        with open(honest, "w", encoding="utf-8") as file:
            json.dump(proof, file)
        honest_row.count(fieldprint("ledger", "check-proof", "--file", honest).returncode == 0, problem="an honest proof fails")
        with open(notes[small], encoding="utf-8") as file:
            proof["root1"] = file.read().split("\n")[2]
        forged = os.path.join(large.folder, "forged.json")
        with open(forged, "w", encoding="utf-8") as file:
            json.dump(proof, file)
        row.count(fieldprint("ledger", "check-proof", "--file", forged).returncode == 1, problem="a forged proof holds")


def node_hashes(leaves):
    """Every complete subtree's hash: {(level, index): hash}. RFC 9162 §2.1."""
    level = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]
    nodes, height = {}, 0
    while level:
        nodes.update({(height, i): value for i, value in enumerate(level)})
        level = [hashlib.sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        height += 1
    return nodes


def reorder(leaves, kind, place):
    """The leaves as a forger would have them."""
    leaves = list(leaves)
    if kind == "exchanged":
        leaves[place], leaves[place + 1] = leaves[place + 1], leaves[place]
    elif kind == "replayed in another's place":
        leaves[place + 1] = leaves[place]
    elif kind == "replayed at the end":
        leaves.append(leaves[place])
    elif kind == "left out":
        del leaves[place]
    elif kind == "reversed":
        leaves.reverse()
    return leaves


def replays(campaign):
    """Records are exchanged, repeated or left out, with all hashes made to fit; the key is not the forger's."""
    source = grown(campaign, 12, 5)
    for kind in ("exchanged", "replayed in another's place", "replayed at the end", "left out", "reversed"):
        row_of_kind = campaign.row(f"records {kind}, hashes made to fit")
        places = (0,) if kind == "reversed" else range(0, 16, 8 if campaign.quick else 1)
        for place in places:
            for with_hashes in (False, True):
                at = source.copy(campaign.folder())
                forged = reorder([row[1] for row in at.rows("leaves")], kind, place)
                statements = [at.clear("leaves"), *(at.insert("leaves", row) for row in enumerate(forged))]
                if with_hashes:
                    hashes = [(level, i, value) for (level, i), value in node_hashes(forged).items()]
                    statements += [at.clear("nodes"), *(at.insert("nodes", row) for row in hashes),
                                   at.update("tree", [], "size", len(forged)),
                                   at.clear("checkpoints", f"WHERE size > {len(forged)}")]
                if not at.change(statements):
                    raise AssertionError("a forgery could not be made")
                status, said = audit(at)
                # Who holds the key must not sign it either.
                signed = tool("append", at.word, 1, 1).returncode
                named = status == 1 and "NOT SOUND" in said
                row_of_kind.count(named and (signed != 0 or not with_hashes), problem=f"{place}, {with_hashes}: {status} {signed} {said}")
                at.drop()


FORGERIES = [forks, replays]
KINDS = [forged_signatures, *FORGERIES]
