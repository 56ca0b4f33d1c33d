"""`run --data --receipts`, killed at any instant: the ledger opens afterwards, and every receipt that is there verifies."""

import glob
import json
import os
import random
import subprocess
import time
import unittest

from command_line import BINARY, CommandLineTest, model

ROUNDS = 20


class KillTest(CommandLineTest):
    def command(self, receipts):
        """A run of several answers that end one after another."""
        return [BINARY, "run", "-m", model(), "--prompts", self.prompts, "--batch", "2", "--data", self.path("ledger"),
                "--receipts", self.path(receipts), "--json"]

    def test_killed_runs_leave_a_sound_ledger_and_sound_receipts(self):
        self.prompts = self.write("prompts.jsonl", "".join(
            json.dumps({"id": f"q{i}", "prompt": f"Number {i} is", "n": 1 + i % 3}) + "\n" for i in range(16)))
        command = self.command("whole")
        begin = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        whole = time.monotonic() - begin
        choose = random.Random(3)
        killed = 0
        for number in range(ROUNDS):
            with subprocess.Popen(self.command(f"round-{number}"), stdout=subprocess.DEVNULL) as process:
                time.sleep(choose.uniform(0, whole))
                process.kill()
            killed += process.returncode == -9
            self.answers("-p", "Still there", "-n", 1, "--data", self.path("ledger"),
                         "--receipts", self.path(f"after-{number}"))
        self.assertGreater(killed, ROUNDS // 4)
        receipts = sorted(glob.glob(self.path("*/*.receipt")))
        self.assertGreater(len(receipts), 16 + ROUNDS)
        # A kill may leave a receipt without its readable view, never a view without its receipt.
        views = []
        for path in glob.glob(self.path("*/*.json")):
            self.assertIn(os.path.splitext(path)[0] + ".receipt", receipts)
            with open(path, encoding="utf-8") as file:
                views.append(json.load(file))
        self.assertGreaterEqual(len(views), len(receipts) - killed)
        # One ledger, one key, and no place in it given away twice.
        self.assertEqual(len(views), len({view["leaf_index"] for view in views}))
        self.assertEqual(1, len({view["verifier_key"] for view in views}))
        key = self.path("ledger/ledger.pub")
        ended = self.succeed("verify", *receipts, "-m", model(), "--key", key, "--json")
        self.assertEqual([True] * len(receipts), [line["verified"] for line in ended.lines()])


if __name__ == "__main__":
    unittest.main()
