"""Every mistake and every failure of the environment is answered with its name, what to do, and the right exit status."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import unittest

from command_line import (BAD_USAGE, BINARY, DONE, ENVIRONMENT_FAILED, GGUF, CommandLineTest, limit_file_size, model, run)
from processes import started, stops


class UsageTest(CommandLineTest):
    def assert_refused(self, *arguments, words, env=None):
        """`run` on a short prompt with these arguments besides is bad usage."""
        ended = run("run", "-m", model(), "-p", "hi", "-n", 2, *arguments, env=env)
        self.assert_fails(ended, BAD_USAGE, *words)

    def test_commands_and_options(self):
        self.assert_fails(run(), BAD_USAGE, "subcommand is required", "--help")
        self.assert_fails(run("rnu"), BAD_USAGE, "no command 'rnu'", "--help")
        self.assert_fails(run("run", "-m", model()), BAD_USAGE, "--prompt")
        self.assert_refused("--chat", "chat.json", words=["Exactly 1"])
        self.assert_refused("--warp", "9", words=["--warp"])
        self.assertEqual(0, run("--help").status)
        self.assertIn("Exit codes", run("--help").out)
        self.assertEqual(0, run("run", "--help").status)

    def test_sampling_settings(self):
        for option, value, words in (
                ("--temperature", "nan", ["temperature", "0.001 to 100"]), ("--temperature", "-1", ["temperature"]),
                ("--temperature", "hot", ["--temperature", "hot"]), ("--top-p", "0", ["top-p", "at most 1"]),
                ("--top-k", "-3", ["top-k"]), ("--min-p", "2", ["min-p"]),
                ("--repetition-penalty", "0", ["repetition penalty"]), ("--seed", "-1", ["--seed"]),
                ("--logprobs", "100", ["20"]),
                ("--anchor-floor", "1", ["floor"]), ("--anchor-ceiling", "1.5", ["ceiling"]),
                ("--max-tokens", "0", ["--max-tokens"])):
            with self.subTest(option=option, value=value):
                self.assert_refused(option + "=" + value, words=words)
        self.assert_refused("--stop", "", words=["stop string", "empty"])
        self.assert_refused("--stop", "x" * 4097, words=["stop string", "4096"])
        self.assert_refused("--temperature", "1e-39", words=["temperature", "0.001 to 100"])

    def test_sizes(self):
        for option, value, words in (
                ("--batch", "0", ["--batch", "256"]), ("--batch", "1000", ["--batch", "256"]),
                ("--prefill-chunk", "0", ["--prefill-chunk"]), ("--prefill-chunk", "100000", ["--prefill-chunk", "8192"]),
                ("--kv-blocks", "-4", ["--kv-blocks"]), ("--threads", "5000", ["--threads"]),
                ("--threads", "-1", ["--threads"])):
            with self.subTest(option=option, value=value):
                self.assert_refused(option, value, words=words)

    def test_a_cache_that_does_not_fit_into_memory(self):
        ended = run("run", "-m", model(), "-p", "hi", "--kv-blocks", "16000000")
        self.assert_fails(ended, ENVIRONMENT_FAILED, "16000000 KV blocks", "do not fit", "--kv-blocks (at most")

    def test_swap_areas(self):
        there = self.write("there", "something of value")
        for arguments, words in ((["--kv-swap", "-1"], ["--kv-swap"]),
                                 (["--kv-swap", 64, "--no-prefix-cache"], ["--kv-swap", "--no-prefix-cache"]),
                                 (["--kv-swap-file", self.path("swap")], ["--kv-swap-file", "--kv-swap"]),
                                 (["--kv-swap", 64, "--kv-swap-file", there], [there, "File exists"]),
                                 (["--kv-swap", 64, "--kv-swap-file", self.path("none/swap")], ["none/swap", "No such"])):
            with self.subTest(arguments=arguments):
                self.assert_refused(*arguments, words=words)
        with open(there, encoding="utf-8") as file:
            self.assertEqual("something of value", file.read())
        ended = run("run", "-m", model(), "-p", "hi", "--kv-swap", 1 << 26)
        self.assert_fails(ended, ENVIRONMENT_FAILED, "do not fit", "a smaller --kv-swap")

    def test_a_cache_that_is_too_small_for_the_prompt(self):
        ended = run("run", "-m", model(), "-p", "hi", "--kv-blocks", "1", "--json")
        self.assert_fails(ended, BAD_USAGE, "needs 3 KV blocks", "only 1")

    def test_backends(self):
        for arguments, env in ((["--backend", "abacus"], {}), ([], {"FIELDPRINT_BACKEND": "abacus"})):
            self.assert_refused(*arguments, env=env, words=["no backend 'abacus'", "avx2", "scalar"])
        # The option goes before the environment.
        self.assertEqual(0, run("run", "-m", model(), "-p", "hi", "-n", 1, "--backend", "scalar",
                                env={"FIELDPRINT_BACKEND": "abacus"}).status)

    def test_anchors(self):
        cases = ((b"", ["empty"]), (b"\xef\xbb\xbf\r\n", ["empty"]), (b"caf\xe9", ["UTF-8"]), (b"a\0b", ["NUL"]),
                 (b"x" * 300_000, ["64000 bytes"]),
                 (b"many words " * 2000, ["--max-anchor-tokens", "1024", "tokens"]))
        for content, words in cases:
            with self.subTest(content=content[:12]):
                path = self.write("anchor.txt", content)
                self.assert_refused("--anchor", path, words=words)
        self.assert_refused("--anchor", self.path("none.txt"), words=["none.txt", "No such file"])
        self.assert_refused("--anchor", self.folder, words=["not a regular file"])

    def test_prompts_name_the_line(self):
        good = '{"prompt": "hi", "n": 1}\n'
        cases = (("{oops\n", ["not valid JSON"]), ("17\n", ["expected a JSON object"]), ("{}\n", ['"messages" or "prompt"']),
                 ('{"prompt": "a", "messages": []}\n', ["either"]), ('{"messages": []}\n', ["non-empty"]),
                 ('{"messages": [{"role": "user"}]}\n', ['"content"']), ('{"prompt": 3}\n', ["must be a string"]),
                 ('{"prompt": "a", "n": "many"}\n', ["whole numbers"]), ('{"prompt": "a", "n": -1}\n', ["whole numbers"]),
                 ('{"prompt": "a", "stop": [1]}\n', ['"stop"']), ('{"prompt": "a", "id": "a/b"}\n', ["an id must be"]),
                 ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', ['a second prompt with the id "x"']),
                 ('{"prompt": "a", "inputs": [{"kind": "memory", "digest": "ab"}]}\n', ['"inputs"', "SHA-256"]),
                 ('{"prompt": "a", "inputs": [{"kind": "rumour", "digest": "%s"}]}\n' % ("ab" * 32), ["rumour", "memory"]),
                 (b'{"prompt": "\xff"}\n', ["not valid JSON"]))
        for line, words in cases:
            with self.subTest(line=line):
                content = good.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode())
                path = self.write("prompts.jsonl", content)
                number = 2 + len(line.splitlines())
                ended = run("run", "-m", model(), "--prompts", path)
                self.assert_fails(ended, BAD_USAGE, f"{path}:{number}: ", *words)
        for content, words in (("", ["no prompt"]), ("\n \n", ["no prompt"])):
            ended = run("run", "-m", model(), "--prompts", self.write("prompts.jsonl", content))
            self.assert_fails(ended, BAD_USAGE, *words)
        ended = run("run", "-m", model(), "--chat", self.write("chat.json", "[}"))
        self.assert_fails(ended, BAD_USAGE, "chat.json", "not valid JSON")

    def test_an_unknown_setting_of_a_prompt_is_not_passed_over(self):
        path = self.write("prompts.jsonl", '{"prompt": "a", "temprature": 1}\n')
        self.assert_fails(run("run", "-m", model(), "--prompts", path), BAD_USAGE, ":1: ", "temprature")

    def test_a_bad_prompt_keeps_the_others_from_being_computed(self):
        path = self.write("prompts.jsonl", '{"prompt": "a"}\n{"id": "hot", "prompt": "b", "temperature": -1}\n')
        self.assert_fails(run("run", "-m", model(), "--prompts", path), BAD_USAGE, "hot: temperature")

    def test_a_message_that_nobody_can_read_keeps_the_exit_code(self):
        def unwritable_stderr():
            os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

        self.assertEqual(BAD_USAGE, run("rnu", before=unwritable_stderr).status)

    def test_a_path_that_is_no_utf8(self):
        path = os.fsdecode(os.path.join(os.fsencode(self.folder), b"\xff.fpm"))
        ended = run("model", "import", GGUF, "-o", path, "--json")
        self.assertEqual(DONE, ended.status, ended.err)
        self.assertIn("\ufffd.fpm", ended.lines()[0]["file"])

    def test_an_answer_longer_than_any_receipt(self):
        path = self.write("prompts.jsonl", '{"id": "long", "prompt": "a", "n": 2000000}\n')
        self.assert_fails(run("run", "-m", model(), "--prompts", path), BAD_USAGE, "long: ", "1 to 1048576")

    def test_a_prompt_that_is_empty_or_longer_than_the_context(self):
        self.assert_fails(run("run", "-m", model(), "-p", ""), BAD_USAGE, "no tokens")
        path = self.write("long.jsonl", '{"id": "long", "prompt": "' + "word " * 9000 + '"}\n')
        self.assert_fails(run("run", "-m", model(), "--prompts", path), BAD_USAGE, "long: ", "8192")

    def test_folders_that_files_are_in_the_way_of(self):
        path = self.write("file", "x")
        for option in ("--receipts", "--data"):
            for folder in (path, os.path.join(path, "below")):
                with self.subTest(option=option, folder=folder):
                    self.assert_refused(option, folder, words=[folder, "a file is in its way"])

    def test_verify_wants_one_receipt_with_kv(self):
        self.assert_fails(run("verify", "a", "b", "-m", model(), "--kv", "c"), BAD_USAGE, "--kv", "alone")


class FilesTest(CommandLineTest):
    def test_files_that_are_not_there(self):
        none = self.path("none")
        for arguments in (["run", "-m", none, "-p", "hi"], ["model", "info", none], ["verify", none, "-m", model()],
                          ["verify", none, "-m", none], ["model", "import", none, "-o", self.path("x.fpm")],
                          ["run", "-m", model(), "--prompts", none], ["run", "-m", model(), "--chat", none]):
            self.assert_fails(run(*arguments), BAD_USAGE, none, "No such file")
        self.assert_fails(run("run", "-m", self.folder, "-p", "hi"), BAD_USAGE, "not a regular file")

    def test_files_of_another_kind(self):
        text = self.write("notes.txt", "These are notes, and no model at all. " * 100)
        self.assert_fails(run("run", "-m", text, "-p", "hi"), BAD_USAGE, "wrong magic", "fieldprint model import")
        self.assert_fails(run("run", "-m", GGUF, "-p", "hi"), BAD_USAGE, "is a GGUF file", "fieldprint model import")
        self.assert_fails(run("model", "import", text, "-o", self.path("x.fpm")), BAD_USAGE, "not a GGUF file")
        self.assert_fails(run("model", "import", model(), "-o", self.path("x.fpm")), BAD_USAGE, "not a GGUF file")
        self.assert_fails(run("verify", text, "-m", model()), BAD_USAGE, "not a sound receipt")
        self.assertFalse(os.path.exists(self.path("x.fpm")))

    def test_what_is_no_regular_file_is_not_replaced(self):
        pipe, folder = self.path("pipe.pub"), self.path("folder.pub")
        os.mkfifo(pipe)
        os.mkdir(folder)
        text = self.write("notes.txt", "notes")
        for path, kind in ((pipe, "named pipe"), (folder, "folder")):
            for arguments in (["model", "import", GGUF, "-o", path],
                              ["run", "-m", model(), "-p", "hi", "-n", 2, "--export-kv", path],
                              ["eval", "perplexity", "-m", model(), "--text", text, "--dump-top1", path],
                              ["anchor", "key", "new", path.removesuffix(".pub"), "--name", "x"]):
                with self.subTest(arguments=arguments):
                    ended = run(*arguments)
                    self.assert_fails(ended, BAD_USAGE, f"{path}: it is a {kind}, not a regular file", "choose another path")
                    self.assertEqual("", ended.out)
        self.assertTrue(stat.S_ISFIFO(os.stat(pipe).st_mode))
        self.assertEqual(["folder.pub", "notes.txt", "pipe.pub"], sorted(os.listdir(self.folder)))

    def test_a_truncated_gguf(self):
        with open(GGUF, "rb") as file:
            head = file.read(5_000_000)
        for size in (0, 3, 10, 3000, 1_000_000, 5_000_000):
            path = self.write("cut.gguf", head[:size])
            self.assert_fails(run("model", "import", path, "-o", self.path("x.fpm")), BAD_USAGE, path)
            self.assertFalse(os.path.exists(self.path("x.fpm")))

    def test_a_truncated_model(self):
        path = self.path("cut.fpm")
        shutil.copyfile(model(), path)
        size = os.path.getsize(path)
        for length in (size - 1, size - 4096, size // 2, 100_000, 4096, 200, 64, 7, 0):
            os.truncate(path, length)
            ended = run("model", "info", path)
            self.assert_fails(ended, BAD_USAGE, path)
            self.assertRegex(ended.err, "truncated|ends|bytes|wrong magic|empty")

    def test_an_altered_model(self):
        path = self.path("altered.fpm")
        shutil.copyfile(model(), path)
        size = os.path.getsize(path)
        choose = random.Random(2)
        for place in (0, 9, 40, 500, size - 1, *(choose.randrange(size) for _ in range(4))):
            with open(path, "r+b") as file:
                file.seek(place)
                byte = file.read(1)
                file.seek(place)
                file.write(bytes([byte[0] ^ 4]))
            self.assert_fails(run("run", "-m", path, "-p", "hi"), BAD_USAGE, path)
            with open(path, "r+b") as file:
                file.seek(place)
                file.write(byte)
        self.succeed("model", "info", path)

    def test_import_gives_the_same_bytes_again(self):
        path = self.path("again.fpm")
        digest = self.succeed("model", "import", GGUF, "-o", path, "--threads", 1).out.strip()
        with open(path, "rb") as again, open(model(), "rb") as first:
            self.assertEqual(first.read(), again.read())
        self.assertEqual(digest, self.succeed("model", "info", path, "--json").out.split('"model_digest":"')[1][:64])


class FullDiskTest(CommandLineTest):
    """A disk that is full: writing fails beyond some length, or on a file system of one MiB."""

    def asked(self, *arguments):
        """Arguments of a short run."""
        return ["run", "-m", model(), "-p", "hi", "-n", 2, "--json", *arguments]

    def test_import(self):
        path = self.path("x.fpm")
        ended = run("model", "import", GGUF, "-o", path, before=limit_file_size(10_000_000))
        self.assert_fails(ended, ENVIRONMENT_FAILED, path, "File too large")
        self.assertEqual([], os.listdir(self.folder))

    def test_receipts(self):
        receipts = self.path("receipts")
        ended = run(*self.asked("--receipts", receipts), before=limit_file_size(300))
        self.assertEqual(ENVIRONMENT_FAILED, ended.status)
        self.assertIn(receipts, ended.err)
        self.assertEqual([], os.listdir(receipts))
        self.assertIsNone(ended.lines()[0]["receipt"])

    @contextlib.contextmanager
    def stopped(self, step, *arguments):
        """A run that has stopped at its first pass of a durable step."""
        with started([BINARY, *map(str, arguments)], env={**os.environ, "FIELDPRINT_FAULT": f"stop:{step}:1"},
                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self.assertTrue(stops(process), f"it does not come to {step}")
            yield process

    def test_a_receipt_without_its_view(self):
        receipts = self.path("receipts")
        view = os.path.join(receipts, "answer.json")
        asked = self.asked("--receipts", receipts)
        with self.stopped("receipt.before_creation", *asked) as process:
            os.mkdir(view)
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=120)
        self.assertEqual(BAD_USAGE, process.returncode, err)
        self.assertIn(view + ": it is a folder", err)
        self.assertEqual(["answer.json"], os.listdir(receipts))
        self.assertIsNone(json.loads(out)["receipt"])
        # What is there from the start is found before the work.
        self.assert_fails(run(*asked), BAD_USAGE, view + ": it is a folder")

    def test_a_ledger_that_is_locked_for_too_long_leaves_no_receipt(self):
        """The answer's record is durable when the ledger is taken away; no verdict comes, so that it does not hold."""
        data, receipts = self.path("data"), self.path("receipts")
        self.succeed(*self.asked("--data", data))
        asked = self.asked("--data", data, "--receipts", receipts, "--ledger-patience", 1)
        with self.stopped("commits.recorded", *asked) as process, \
                contextlib.closing(sqlite3.connect(os.path.join(data, "ledger.sqlite"))) as other:
            other.execute("BEGIN IMMEDIATE")
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate(timeout=120)
        self.assertEqual(ENVIRONMENT_FAILED, process.returncode, err)
        self.assertIn("answers wait for the ledger, for 1 s at most", err)
        self.assertIn("does not answer; the first", err)
        self.assertEqual([], os.listdir(receipts))
        self.assertEqual("", out)
        self.succeed(*self.asked("--data", data, "--receipts", receipts))
        self.assertEqual(["answer.json", "answer.receipt"], sorted(os.listdir(receipts)))

    def test_a_disk_that_is_full_and_freed_again_ends_no_answer(self):
        with self.small_disk() as disk:
            data = os.path.join(disk, "data")
            self.succeed(*self.asked("--data", data))
            with self.stopped("commits.before_append", *self.asked("--data", data)) as process:
                ballast = os.path.join(disk, "ballast")
                with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(bytes(1 << 12)):
                        pass
                process.send_signal(signal.SIGCONT)
                said = ""
                while "answers wait for the ledger" not in said:
                    line = process.stderr.readline()
                    self.assertTrue(line, f"the full disk was not felt: {said}")
                    said += line
                self.assertIn(data, said)
                self.assertIsNone(process.poll())
                os.unlink(ballast)
                out, err = process.communicate(timeout=120)
            self.assertEqual(DONE, process.returncode, err)
            self.assertIn("the ledger is back", err)
            self.assertIn('"id":"answer"', out)
            self.succeed("ledger", "audit", "--data", data)

    def test_ledger(self):
        ended = run(*self.asked("--data", self.path("ledger")), before=limit_file_size(2000))
        self.assertEqual(ENVIRONMENT_FAILED, ended.status)
        self.assertIn(self.path("ledger"), ended.err)
        self.succeed(*self.asked("--data", self.path("ledger")))

    def test_exported_kv(self):
        ended = run(*self.asked("--export-kv", self.path("kv")), before=limit_file_size(10_000))
        self.assertEqual(ENVIRONMENT_FAILED, ended.status)
        self.assertIn(self.path("kv"), ended.err)
        self.assertEqual([], os.listdir(self.folder))

    def test_stdout(self):
        with open("/dev/full", "wb") as full:
            for json_option in (["--json"], []):
                ended = run("run", "-m", model(), "-p", "hi", "-n", 2, *json_option, stdout=full)
                self.assertEqual(ENVIRONMENT_FAILED, ended.status)
                self.assertIn("standard output: No space left on device", ended.err)

    @contextlib.contextmanager
    def small_disk(self):
        """A file system of one MiB; the test skips where one may not be mounted."""
        disk = self.path("disk")
        os.mkdir(disk)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("only root may mount a small disk")
        try:
            yield disk
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_disk_without_space(self):
        with self.small_disk() as disk:
            ended = run("model", "import", GGUF, "-o", os.path.join(disk, "x.fpm"))
            self.assert_fails(ended, ENVIRONMENT_FAILED, disk, "No space left on device")
            self.assertEqual([], os.listdir(disk))
            with open(os.path.join(disk, "ballast"), "wb") as ballast:
                with contextlib.suppress(OSError):
                    ballast.write(bytes(1 << 20))
            for option in ("--receipts", "--data", "--export-kv"):
                ended = run(*self.asked(option, os.path.join(disk, option)))
                self.assertEqual(ENVIRONMENT_FAILED, ended.status, option)
                self.assertIn(disk, ended.err)


if __name__ == "__main__":
    unittest.main()
