"""Both models answer as golden_runs.json says: import, prefill, decode, sampling and pages, to the bit.

The file changes only together with the contract's version, the importer or its calibration, and is then written anew:

    FIELDPRINT_BINARY=build/fieldprint FIELDPRINT_SMOLLM2_GGUF=... FIELDPRINT_GEMMA3_GGUF=... \\
        python3 tests/end_to_end/golden_runs_test.py --write

Import and runs take the fastest backend of the machine, so a machine with a GPU checks that.
"""

import hashlib
import json
import os
import struct
import sys
import tempfile
import unittest

from command_line import BINARY, DONE, GEMMA3_GGUF, GGUF, model, run

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden_runs.json")
GGUFS = {"smollm2": GGUF, "gemma3": GEMMA3_GGUF}
POLICY = ("You keep the register of a harbour. Name a shelf only if the register names it, never guess a number, and "
          "answer in one sentence. If two entries disagree, the later one holds. Do not speak of clerks by their names; "
          "they are numbers in the register and stay so. When somebody asks for something that is not in the register, "
          "say that it is not there.\n")
SETTINGS = {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 11, "repetition_penalty": 1.1}}
ANSWER_TOKENS = 48


def register():
    """More than a thousand tokens: tiles, chunks and Gemma's window of 512 begin and end in it."""
    goods = ["copper wire", "oak planks", "salt", "lamp oil", "canvas", "tea", "iron nails"]
    lines = [f"Shelf {n} holds {n * 37 % 91 + 2} crates of {goods[n % 7]}, counted by clerk {n % 13 + 1}.\n"
             for n in range(1, 71)]
    return "The register of the harbour warehouse, shelf by shelf.\n" + "".join(lines) + "In short, the warehouse"


def logprobs_digest(entries):
    """SHA-256 of tokens and log-probabilities as int32 and float32, each token's alternatives after it."""
    pairs = [pair for entry in entries for pair in (entry, *entry["alternatives"])]
    return hashlib.sha256(b"".join(struct.pack("<if", pair["token"], pair["logprob"]) for pair in pairs)).hexdigest()


def runs_of(gguf):
    """What the model of a GGUF file gives, in the shape of the golden file."""
    info = json.loads(run("model", "info", model(gguf), "--json").out)
    out = {"gguf": info["manifest"]["source"]["sha256"], "canon": info["manifest"]["canon"],
           "model_digest": info["model_digest"]}
    with tempfile.TemporaryDirectory() as folder:
        policy, prompts = os.path.join(folder, "policy.txt"), os.path.join(folder, "prompts.jsonl")
        with open(policy, "w", encoding="utf-8") as file:
            file.write(POLICY)
        with open(prompts, "w", encoding="utf-8") as file:
            for name, settings in SETTINGS.items():
                file.write(json.dumps({"id": name, "prompt": register(), "n": ANSWER_TOKENS, **settings}) + "\n")
        ended = run("run", "-m", model(gguf), "--json", "--anchor", policy, "--anchor-floor", 0.05, "--anchor-ceiling",
                    0.6, "--prompts", prompts, "--logprobs", 3)
        if ended.status != DONE:
            raise AssertionError(ended.err)
    for answer in ended.lines():
        out[answer["id"]] = {"output_digest": answer["output_digest"], "kv_digest": answer["kv_digest"],
                             "logprobs_digest": logprobs_digest(answer["logprobs"]), "text": answer["text"]}
    return out


class GoldenRunsTest(unittest.TestCase):
    maxDiff = None

    def check(self, name):
        """The runs of a model are those of the file; versions and files are compared first, then all the rest."""
        if not BINARY or not GGUFS[name]:
            self.skipTest(f"set FIELDPRINT_BINARY and FIELDPRINT_{name.upper()}_GGUF")
        with open(GOLDEN, encoding="utf-8") as file:
            golden = json.load(file)[name]
        runs = runs_of(GGUFS[name])
        self.assertEqual(golden["gguf"], runs["gguf"], "the golden runs were made from another GGUF file")
        self.assertEqual(golden["canon"], runs["canon"], "write the golden runs anew for this contract")
        self.assertEqual(golden, runs)

    def test_smollm2_answers_as_written_down(self):
        self.check("smollm2")

    def test_gemma3_answers_as_written_down(self):
        self.check("gemma3")


def write():
    """Writes the golden file from what the models give now."""
    runs = {name: runs_of(gguf) for name, gguf in GGUFS.items()}
    with open(GOLDEN, "w", encoding="utf-8") as file:
        json.dump(runs, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        unittest.main()
