"""`fieldprint run` and `verify` on a real model: what they print, and that nothing but the question changes an answer."""

import hashlib
import json
import os
import random
import subprocess
import sys
import unittest

from command_line import BAD_USAGE, BINARY, DONE, REFUTED, CommandLineTest, backends, limit_file_size, model, run

POLICY = "You are a courteous guide. Answer in one short sentence.\n"
QUESTIONS = ["What is the capital of France?", "Name a colour of the rainbow.", "Write two lines about the sea."]
ANSWER_KEYS = {"id", "text", "token_ids", "finish_reason", "receipt", "output_digest", "kv_digest", "anchor_mass",
               "usage", "timing", "validated", "commits", "verdicts", "reexecuted"}


def prompt_lines(count=3, **settings):
    """Chat prompts as `run --prompts` reads them."""
    return "".join(json.dumps({"id": f"q{i}", "messages": [{"role": "user", "content": QUESTIONS[i]}], **settings}) + "\n"
                   for i in range(count))


class RunTest(CommandLineTest):
    def setUp(self):
        super().setUp()
        self.policy = self.write("policy.txt", POLICY)
        self.prompts = self.write("prompts.jsonl", prompt_lines(n=12))

    def ask(self, *arguments, **options):
        """Three answers under the policy."""
        return self.answers("--anchor", self.policy, "--prompts", self.prompts, *arguments, **options)

    def receipt(self):
        """Path of the receipt of one short answer."""
        receipts = self.path("receipts")
        self.answers("--anchor", self.policy, "-p", "The sea is", "-n", 6, "--receipts", receipts)
        return os.path.join(receipts, "answer.receipt")

    def test_json_has_the_documented_keys(self):
        receipts = self.path("made/for/me")
        answers = self.ask("--receipts", receipts)
        self.assertEqual({"q0", "q1", "q2"}, set(answers))
        for answer in answers.values():
            self.assertEqual(ANSWER_KEYS, set(answer))
            self.assertIn(answer["finish_reason"], ("stop", "length"))
            self.assertEqual(os.path.join(receipts, answer["id"] + ".receipt"), answer["receipt"])
            self.assertTrue(os.path.isfile(answer["receipt"]))
            self.assertEqual(30, len(answer["anchor_mass"]["by_layer"]))
            self.assertTrue(0 < answer["anchor_mass"]["mean"] < 1)
            self.assertEqual({"prompt_tokens", "cached_tokens", "swapped_tokens", "completion_tokens"},
                             set(answer["usage"]))
            self.assertEqual(len(answer["token_ids"]), answer["usage"]["completion_tokens"])
            self.assertEqual({"prefill_tokens_per_s", "decode_tokens_per_s"}, set(answer["timing"]))
            for name in ("output_digest", "kv_digest"):
                self.assertRegex(answer[name], "^[0-9a-f]{64}$")

    def test_strict_and_optimistic_streams_give_the_same_validated_answer(self):
        strict, optimistic = (self.answers("-p", "The sea is", "-n", 70, "--stream", stream)["answer"]
                              for stream in ("strict", "optimistic"))
        self.assertEqual(optimistic["token_ids"], strict["token_ids"])
        self.assertEqual(optimistic["text"], strict["text"])
        for answer in (strict, optimistic):
            self.assertIs(True, answer["validated"])
            self.assertEqual(3, answer["commits"])  # the prompt, the block that generation fills, the answer
            self.assertGreaterEqual(answer["verdicts"], 1)
        self.assert_fails(run("run", "-m", model(), "-p", "A", "--stream", "sometimes"), BAD_USAGE, "--stream")

    def test_no_receipt_is_null_and_logprobs_come_when_asked_for(self):
        answer = self.answers("-p", "The sea is", "-n", 3, "--logprobs", 2)["answer"]
        self.assertIsNone(answer["receipt"])
        self.assertEqual({"mean": 0, "by_layer": []}, answer["anchor_mass"])
        self.assertEqual(answer["token_ids"], [entry["token"] for entry in answer["logprobs"]])
        for entry in answer["logprobs"]:
            self.assertEqual(2, len(entry["alternatives"]))
            self.assertEqual(entry["token"], entry["alternatives"][0]["token"])

    def test_text_goes_to_stdout_alone(self):
        ended = self.succeed("run", "-m", model(), "-p", "The sea is", "-n", 4)
        self.assertTrue(ended.out.startswith("answer> "), ended.out)
        self.assertIn("4 tokens", ended.out)

    def test_nothing_but_the_question_changes_an_answer(self):
        def essence(answers):
            return {name: [answer[key] for key in ("token_ids", "output_digest", "kv_digest", "anchor_mass", "text")]
                    for name, answer in answers.items()}

        for settings in ([], ["--temperature", "0.8", "--seed", "7", "--top-p", "0.9", "--repetition-penalty", "1.1"]):
            expected = essence(self.ask(*settings))
            variations = [["--batch", 1], ["--batch", 2, "--prefill-chunk", 16], ["--prefill-chunk", 1],
                          ["--threads", 1], ["--no-prefix-cache"], ["--kv-blocks", 7],
                          ["--kv-blocks", 7, "--kv-swap", 64],
                          ["--kv-blocks", 7, "--kv-swap", 64, "--kv-swap-file", self.path("swap")], []]
            variations += [["--backend", name] for name in backends() if name != "scalar"]
            for variation in variations:
                self.assertEqual(expected, essence(self.ask(*settings, *variation)), variation)

    def test_evicted_blocks_come_back_from_the_swap_area(self):
        long = "The sea is wide and old, and whoever sails it learns to wait. " * 20
        prompts = self.write("again.jsonl", "".join(json.dumps({"id": name, "prompt": text + long, "n": 2}) + "\n"
                                                    for name, text in (("a", ""), ("b", "But "), ("c", ""))))
        asked = ["--prompts", prompts, "--batch", 1, "--kv-blocks", 7]
        plain = self.answers(*asked)
        for place in ([], ["--kv-swap-file", self.path("swap")]):
            swapped = self.answers(*asked, "--kv-swap", 64, *place)
            self.assertEqual([plain[name]["kv_digest"] for name in "abc"], [swapped[name]["kv_digest"] for name in "abc"])
            usage = swapped["c"]["usage"]
            self.assertGreater(usage["swapped_tokens"], 64)
            self.assertGreater(usage["cached_tokens"], plain["c"]["usage"]["cached_tokens"])
            self.assertFalse(os.path.exists(self.path("swap")))
        # A disk that fills costs time alone, and is reported.
        ended = run("run", "-m", model(), "--json", *asked, "--kv-swap", 64, "--kv-swap-file", self.path("swap"),
                    before=limit_file_size(1 << 20))
        self.assertEqual(DONE, ended.status, ended)
        # Answers come in the order in which they are validated.
        self.assertEqual(sorted((name, plain[name]["kv_digest"]) for name in "abc"),
                         sorted((line["id"], line["kv_digest"]) for line in ended.lines()))
        self.assertEqual(1, ended.err.count("fieldprint: cannot write the swap file"), ended.err)

    def test_the_scalar_backend_agrees(self):
        answers = [self.answers("-p", "Hi", "-n", 2, "--backend", name)["answer"] for name in ("scalar", backends()[0])]
        self.assertEqual(answers[0]["kv_digest"], answers[1]["kv_digest"])
        self.assertEqual(answers[0]["token_ids"], answers[1]["token_ids"])

    def test_the_seed_changes_a_sampled_answer(self):
        asked = ["-p", "The sea is", "-n", 12, "--temperature", 1]
        first, second = (self.answers(*asked, "--seed", seed)["answer"]["text"] for seed in (1, 2))
        self.assertNotEqual(first, second)

    def test_a_stop_string_ends_the_answer_and_is_left_out(self):
        asked = ["-p", "Once upon a time there was", "-n", 24]
        text = self.answers(*asked)["answer"]["text"]
        stop = text[len(text) // 2:][:3]
        answer = self.answers(*asked, "--stop", "never in this text", "--stop", stop)["answer"]
        self.assertEqual("stop", answer["finish_reason"])
        self.assertEqual(text[:text.index(stop)], answer["text"])

    def test_prompts_may_be_text_and_have_settings_of_their_own(self):
        lines = prompt_lines(1, n=2) + "\n" + json.dumps({"prompt": "The sea is", "n": 5, "stop": "\u00e9"}) + "\n"
        answers = self.answers("--prompts", self.write("mixed.jsonl", lines))
        self.assertEqual({"q0": 2, "answer-2": 5},
                         {name: answer["usage"]["completion_tokens"] for name, answer in answers.items()})

    def test_a_chat_file_is_read_in_both_shapes(self):
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        texts = {self.answers("--chat", self.write("chat.json", json.dumps(chat)), "-n", 4)["answer"]["text"]
                 for chat in (messages, {"messages": messages})}
        self.assertEqual(1, len(texts))

    def test_a_ledger_that_is_kept_goes_on_over_runs(self):
        ledger = self.path("ledger")
        for name in ("first", "second"):
            self.ask("--data", ledger, "--receipts", self.path(name))
        paths = [self.path(f"{name}/q{i}.receipt") for name in ("first", "second") for i in range(3)]
        views = []
        for path in paths:
            with open(path.replace(".receipt", ".json"), encoding="utf-8") as file:
                views.append(json.load(file))
        # The anchor's own records come first, once.
        anchored, = self.succeed("anchor", "list", "--data", ledger, "--json").lines()
        self.assertEqual([("propose", 0), ("verify", 1), ("promote", 2)],
                         [(event["action"], event["record"]) for event in anchored["history"]])
        self.assertEqual(6, len({view["leaf_index"] for view in views}))
        self.assertLess(2, min(view["leaf_index"] for view in views))
        self.assertEqual(1, len({view["verifier_key"] for view in views}))
        key = self.write("ledger.pub", views[0]["verifier_key"] + "\n")
        ended = self.succeed("verify", *paths, "-m", model(), "--key", key, "--json")
        self.assertEqual([True] * 6, [line["verified"] for line in ended.lines()])

    def test_verify_json_has_the_documented_keys(self):
        receipt = self.receipt()
        for name in backends():
            if name == "scalar" and len(backends()) > 1:
                continue
            line, = self.succeed("verify", receipt, "-m", model(), "--json", "--backend", name).lines()
            self.assertEqual({"receipt", "verified", "checks", "tokens_replayed", "tokens_per_s"}, set(line))
            self.assertIs(True, line["verified"])
            self.assertTrue(all(set(check) == {"name", "ok", "detail"} and check["ok"] for check in line["checks"]))
            self.assertGreater(line["tokens_per_s"], 0)

    def test_verify_goes_on_after_a_receipt_that_it_cannot_read(self):
        receipt = self.receipt()
        ended = run("verify", self.path("none.receipt"), receipt, "-m", model())
        self.assertEqual(BAD_USAGE, ended.status)
        self.assertIn("none.receipt", ended.err)
        self.assertIn("answer.receipt: verified", ended.out)

    def test_a_key_that_did_not_sign_is_named(self):
        receipt = self.receipt()
        self.answers("-p", "a", "-n", 1, "--data", self.path("other"), "--receipts", self.path("other"))
        with open(self.path("other/answer.json"), encoding="utf-8") as file:
            key = self.write("other.pub", json.load(file)["verifier_key"])
        ended = run("verify", receipt, "-m", model(), "--key", key)
        self.assertEqual((REFUTED, ""), (ended.status, ended.err))
        self.assertIn("DOES NOT VERIFY", ended.out)

    def test_an_altered_receipt_never_verifies(self):
        with open(self.receipt(), "rb") as file:
            receipt = file.read()
        choose = random.Random(1)
        paths = []
        for i in range(50):
            altered = bytearray(receipt)
            altered[choose.randrange(len(receipt))] ^= 1 << choose.randrange(8)
            paths.append(self.write(f"{i}.receipt", bytes(altered)))
        ended = run("verify", *paths, "-m", model(), "--json")
        self.assertIn(ended.status, (REFUTED, BAD_USAGE))
        lines = ended.lines()
        self.assertEqual(50, len(lines) + len(ended.err.splitlines()), ended.err)
        for line in lines:
            self.assertIs(False, line["verified"], line["receipt"])
            self.assertTrue(any(not check["ok"] for check in line["checks"]), line)

    def test_an_altered_kv_block_is_named(self):
        kv, receipts = self.path("answer.kv"), self.path("receipts")
        # The second answer ends first; the file is the first prompt's all the same.
        prompts = self.write("two.jsonl", '{"id": "long", "prompt": "The sea is", "n": 9}\n{"id": "short", "prompt": "A", "n": 1}\n')
        self.answers("--anchor", self.policy, "--prompts", prompts, "--receipts", receipts, "--export-kv", kv)
        receipt = os.path.join(receipts, "long.receipt")
        verify = ["verify", receipt, "-m", model(), "--json", "--kv", kv]
        self.succeed(*verify)
        with open(kv, "r+b") as file:
            file.seek(os.path.getsize(kv) // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        ended = run(*verify)
        self.assertEqual(REFUTED, ended.status)
        failed = [check for check in ended.lines()[0]["checks"] if not check["ok"]]
        self.assertEqual(1, len(failed))
        self.assertRegex(failed[0]["detail"], r"layer \d+, KV head \d+, .* slot \d+")
        os.truncate(kv, 100)
        ended = run(*verify)
        self.assertEqual(REFUTED, ended.status)
        self.assertIn("the file has 100 bytes", ended.out)

    def test_a_receipt_says_which_tool_results_and_memories_entered_the_context(self):
        memory = {"kind": "memory", "digest": "ab" * 32}
        prompt = {"messages": [{"role": "user", "content": "What is 6 times 7?"}, {"role": "tool", "content": "42"}],
                  "inputs": [memory], "n": 4}
        receipts = self.path("receipts")
        answer = self.answers("--chat", self.write("chat.json", json.dumps(prompt)), "--receipts", receipts)["answer"]
        with open(os.path.join(receipts, "answer.json"), encoding="utf-8") as file:
            result = {"kind": "tool_result", "digest": hashlib.sha256(b"42").hexdigest()}
            self.assertEqual([result, memory], json.load(file)["body"]["inputs"])
        self.succeed("verify", "-m", model(), answer["receipt"])

    def test_a_receipt_grows_by_little_beside_its_tokens(self):
        """Bytes beside the tokens: 258 for 32 tokens is the most that an answer of some length may cost.

        The proof is not counted: it grows with the ledger, and that with what else is entered meanwhile.
        """
        chat = self.write("chat.json", json.dumps([{"role": "user", "content": "Write a very long story about a lighthouse "
                                                                               "keeper, with many chapters."}]))

        def beside_tokens(count):
            receipts = self.path(str(count))
            answer = self.answers("--chat", chat, "-n", count, "--receipts", receipts)["answer"]
            self.assertEqual(count, len(answer["token_ids"]))
            with open(os.path.join(receipts, "answer.json"), encoding="utf-8") as file:
                receipt = json.load(file)
            body = receipt["body"]
            proof = sum(2 + len(digest) // 2 for digest in receipt["inclusion_proof"])
            tokens = sum((body[f"{part}_tokens"] for part in ("sink", "anchor", "context", "output")), [])
            return os.path.getsize(answer["receipt"]) - proof - sum((token.bit_length() + 6) // 7 or 1 for token in tokens)

        short, long = beside_tokens(32), beside_tokens(1000)
        self.assertLess((long - short) * 32 / (1000 - 32), 24, "a block's digest for each 64 tokens")
        self.assertLess(long * 32 / 1000, 258)
        self.assertLess(short, 1050, "what every receipt holds, however short the answer")

    def test_receipts_are_never_replaced(self):
        asked = ["-p", "The sea is", "-n", 2, "--receipts", self.path("kept")]
        first = self.answers(*asked)["answer"]["receipt"]
        with open(first, "rb") as file:
            kept = file.read()
        second = self.answers(*asked)["answer-2"]["receipt"]
        self.assertNotEqual(first, second)
        with open(first, "rb") as file:
            self.assertEqual(kept, file.read())
        prompts = self.write("again.jsonl", json.dumps({"id": "answer-2", "prompt": "The sea is", "n": 2}) + "\n")
        ended = run("run", "-m", model(), "--prompts", prompts, "--receipts", self.path("kept"))
        self.assertEqual(BAD_USAGE, ended.status)
        self.assertIn("answer-2.receipt is there already", ended.err)

    @unittest.skipIf(os.environ.get("FIELDPRINT_SANITIZE"), "instrumented code needs more memory")
    def test_memory_stays_within_weights_pool_and_64_mib(self):
        layers, kv_heads, head_dim, blocks = 30, 3, 64, 40
        block_bytes = layers * kv_heads * 64 * (2 * head_dim + 4)
        prompts = self.write("long.jsonl", "".join(
            json.dumps({"id": f"q{i}", "prompt": f"Story {i}: " + "once upon a time there was a ship " * 28, "n": 4,
                        "temperature": 0.8, "repetition_penalty": 1.1}) + "\n" for i in range(8)))
        arguments = ["run", "-m", model(), "--prompts", prompts, "--anchor", self.policy, "--kv-blocks", str(blocks),
                     "--receipts", self.path("receipts"), "--json"]
        peak, status = peak_memory(arguments)
        self.assertEqual(DONE, status)
        self.assertLessEqual(peak, os.path.getsize(model()) + blocks * block_bytes + (64 << 20))
        verified = ["verify", self.path("receipts/q0.receipt"), "-m", model(), "--json"]
        peak, status = peak_memory(verified)
        self.assertEqual(DONE, status)
        self.assertLessEqual(peak, os.path.getsize(model()) + 6 * block_bytes + (64 << 20))


# A process's peak counts what its parent held when it was spawned, so a small process spawns it.
SPAWN = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                       file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status))
"""


def peak_memory(arguments):
    """Runs fieldprint; peak resident bytes and exit status."""
    spawned = subprocess.run([sys.executable, "-c", SPAWN, BINARY, *arguments], stdout=subprocess.PIPE, text=True,
                             check=True)
    peak, status = spawned.stdout.split()
    return int(peak), int(status)


if __name__ == "__main__":
    unittest.main()
