"""`fieldprint anchor`, and what `run` does with the anchors that it speaks of; on a file, and on a PostgreSQL database."""

import json
import os
import stat
import unittest

from command_line import BAD_USAGE, DONE, REFUTED, CommandLineTest, ToolTest, model, run
from private_postgres import database, server

ROLES = {"ann": ["propose", "promote"], "vic": ["verify"], "pat": ["promote"], "pia": ["promote"], "rob": ["revoke"],
         "ada": ["admin"], "alf": ["admin"], "amy": ["admin"]}
POLICY = "You are a courteous guide. Answer in one short sentence.\n"


class Office:
    """Mixed into tests: people with keys, and a ledger in `self.place`."""

    def office(self, *place):
        self.place = place or ("--data", self.path("ledger"))
        self.keys = {name: self.path(name + ".key") for name in ROLES}
        self.verifier_keys = {name: self.succeed("anchor", "key", "new", path, "--name", name).out.strip()
                              for name, path in self.keys.items()}

    def anchor(self, command, *arguments, by=None):
        """Runs a part of the anchor command to its end."""
        return run("anchor", *command.split(), *arguments, *self.place, *(["--key", self.keys[by]] if by else []))

    def done(self, command, *arguments, by=None):
        """The JSON that a part of the anchor command prints, which must succeed."""
        ended = self.anchor(command, *arguments, "--json", by=by)
        self.assertEqual((DONE, ""), (ended.status, ended.err))
        return ended.lines()[0] if ended.out else None

    def refused(self, status, words, command, *arguments, by=None):
        self.assert_fails(self.anchor(command, *arguments, by=by), status, *words)

    def policy_file(self, name="policy.json", roles=None, **thresholds):
        keys = [{"key": self.verifier_keys[who], "roles": what} for who, what in (roles or ROLES).items()]
        return self.write(name, json.dumps({"keys": keys, "thresholds": {"promote": 2, "admin": 2, **thresholds}}))

    def set_policy(self, path, *admins):
        return self.anchor("policy set", path, *(part for name in admins for part in ("--key", self.keys[name])))

    def begin(self):
        """Puts the usual policy in force."""
        ended = self.set_policy(self.policy_file(), "ada", "alf")
        self.assertEqual((DONE, ""), (ended.status, ended.err))

    def promoted(self, text=POLICY, *terms):
        """The id of an anchor that went all the way."""
        made = self.done("propose", self.write("text.txt", text), *terms, by="ann")["id"]
        self.done("verify", made, by="vic")
        self.done("promote", made, by="pat")
        self.assertEqual("promoted", self.done("promote", made, by="pia")["state"])
        return made


class LifecycleTest(Office, ToolTest):
    def setUp(self):
        super().setUp()
        self.office()

    def test_keys_are_for_their_owners_eyes_and_never_replaced(self):
        for name, path in self.keys.items():
            self.assertEqual(0o600, stat.S_IMODE(os.stat(path).st_mode))
            with open(path + ".pub", encoding="utf-8") as file:
                self.assertEqual(self.verifier_keys[name], file.read().strip())
        self.assert_fails(run("anchor", "key", "new", self.keys["ann"], "--name", "x"), BAD_USAGE, "is there already")
        self.begin()
        os.chmod(self.keys["ann"], 0o640)
        self.refused(BAD_USAGE, ["chmod 600"], "propose", self.write("x.txt", "x"), by="ann")

    def test_each_step_takes_the_keys_that_the_policy_names(self):
        self.begin()
        text = self.write("text.txt", POLICY)
        made = self.done("propose", text, "--name", "guide", by="ann")
        self.assertEqual(("candidate", "guide", "policy"), (made["state"], made["name"], made["type"]))
        name = made["id"]
        self.refused(BAD_USAGE, ["only a verified one"], "promote", name, by="pat")
        self.refused(BAD_USAGE, ["does not let ann verify"], "verify", name, by="ann")
        self.assertEqual("verified", self.done("verify", name[:8], "--file", text, by="vic")["state"])
        self.refused(BAD_USAGE, ["ann proposed", "another promote key"], "promote", name, by="ann")
        self.assertEqual(["pat"], [key.split("+")[0] for key in self.done("promote", name, by="pat")["approvals"]["promote"]])
        self.refused(BAD_USAGE, ["already", "2 different keys"], "promote", name, by="pat")
        self.assertEqual("promoted", self.done("promote", name, by="pia")["state"])
        self.refused(BAD_USAGE, ["does not let"], "revoke", name, "--reason", "x")  # the ledger's own key
        shown = self.done("show", name)
        self.assertEqual(["propose", "verify", "promote", "promote"], [event["action"] for event in shown["history"]])
        self.assertEqual("revoked", self.done("revoke", name, "--reason", "poisoned", by="rob")["state"])
        self.refused(REFUTED, ["revoked: poisoned"], "verify", name, by="vic")
        self.assertIn("poisoned", self.anchor("show", name).out)
        self.assertIn("revoked", self.anchor("list").out)
        self.succeed("ledger", "audit", *self.place)

    def test_an_altered_text_is_no_candidate(self):
        self.begin()
        name = self.done("propose", self.write("text.txt", POLICY), by="ann")["id"]
        altered = self.write("altered.txt", POLICY.replace("courteous", "rude"))
        self.refused(REFUTED, ["altered"], "verify", name, "--file", altered, by="vic")
        self.assertEqual("candidate", self.done("show", name)["state"])

    def test_canonical_bytes_are_the_identity(self):
        self.begin()
        name = self.promoted(POLICY, "--name", "n", "--tenant", "acme", "--floor", "0.25", "--not-after", "2999-01-01T00:00:00Z")
        canonical = self.anchor("show", name, "--canonical").out
        self.assertEqual("fieldprint-anchor 1\ntype policy\nname n\ntenant acme\nfloor 0.25\nnot-after 2999-01-01T00:00:00Z\n\n"
                         + POLICY.strip(), canonical)
        self.refused(BAD_USAGE, ["before and is promoted"], "propose", self.write("copy", canonical), by="ann")

    def test_a_policy_that_can_lock_its_admins_out_is_refused(self):
        for thresholds, roles, words in (({"admin": 3}, None, ["one admin key is lost"]),
                                         ({"promote": 3}, None, ["never be promoted"]),
                                         ({"verify": 2}, None, ["to verify takes 2 keys"]),
                                         ({"admin": 1, "promote": 1}, {"ada": list(ROLES["ann"]) + ["verify", "revoke", "admin"]},
                                          ["never be promoted"])):
            with self.subTest(thresholds=thresholds):
                self.assert_fails(self.set_policy(self.policy_file(roles=roles, **thresholds), "ada", "alf"), BAD_USAGE, *words)
        self.assertFalse(os.path.exists(self.path("ledger/ledger.sqlite")))
        everything = {"ada": ["propose", "verify", "promote", "revoke", "admin"]}
        path = self.policy_file(roles=everything, promote=1, admin=1)
        self.assertTrue(self.done("policy set", path, "--single-operator", by="ada")["single_operator"])
        name = self.done("propose", self.write("x.txt", "x"), by="ada")["id"]
        self.done("verify", name, by="ada")
        self.assertEqual("promoted", self.done("promote", name, by="ada")["state"])

    def test_keys_rotate_and_a_lost_one_is_survived(self):
        self.begin()
        name = self.promoted()
        roles = {who: what for who, what in ROLES.items() if who not in ("ada", "vic")}
        roles["pat"] = ["promote", "verify", "admin"]
        path = self.policy_file("next.json", roles)
        self.assert_fails(self.set_policy(path, "alf"), BAD_USAGE, "1 of the 2")
        self.assert_fails(self.set_policy(path, "alf", "pat"), BAD_USAGE, "pat is no admin")
        self.assertEqual(DONE, self.set_policy(path, "alf", "amy").status)
        self.assertEqual(2, self.done("policy show")["number"])
        self.assertEqual("promoted", self.done("show", name)["state"])
        other = self.done("propose", self.write("y.txt", "y"), by="ann")["id"]
        self.refused(BAD_USAGE, ["does not let vic"], "verify", other, by="vic")
        self.assertEqual("verified", self.done("verify", other, by="pat")["state"])

    def test_malformed_policies_and_ids_are_named(self):
        for content, words in (("{", ["not valid JSON"]), ("[]", ["must be an object"]), ('{"keys": [], "x": 1}', ["\"x\""]),
                               ('{"keys": [{"key": "a", "roles": []}]}', ["verifier key"])):
            self.assert_fails(self.set_policy(self.write("bad.json", content), "ada"), BAD_USAGE, "bad.json", *words)
        self.begin()
        for name, word in (("1234567", "at least 8"), ("zzzzzzzz", "hexadecimal"), ("00000000", "knows no anchor")):
            self.refused(BAD_USAGE, [word], "show", name)
        self.refused(BAD_USAGE, ["2026-11-25T21:14:28Z"], "propose", self.write("x.txt", "x"), "--not-after", "tomorrow", by="ann")


@unittest.skipUnless(server(), "no PostgreSQL server is installed; run tools/setup --tests")
class DatabaseTest(Office, ToolTest):
    def test_the_lifecycle_in_a_database(self):
        self.office("--data", self.path("keys"), "--database", database("anchors"))
        self.begin()
        name = self.promoted()
        self.assertEqual([name], [line["id"] for line in self.anchor("list", "--json").lines()])
        self.assertEqual("revoked", self.done("revoke", name, "--reason", "x", by="rob")["state"])
        self.assertFalse(os.path.exists(self.path("keys/ledger.sqlite")))


class RunTest(Office, CommandLineTest):
    def setUp(self):
        super().setUp()
        self.office()

    def ask(self, anchor, *arguments):
        return run("run", "-m", model(), "-p", "The sea is", "-n", 3, "--json", "--anchor", anchor, *self.place, *arguments)

    def answer(self, anchor, *arguments):
        ended = self.ask(anchor, *arguments)
        self.assertEqual((DONE, ""), (ended.status, ended.err))
        return ended.lines()[0]

    def test_only_a_promoted_anchor_influences_an_answer(self):
        self.begin()
        text = self.write("text.txt", POLICY)
        self.assert_fails(self.ask(text), BAD_USAGE, "knows no anchor", "anchor propose")
        name = self.done("propose", text, by="ann")["id"]
        self.assert_fails(self.ask(name), BAD_USAGE, "candidate")
        self.done("verify", name, "-m", model(), by="vic")
        self.done("promote", name, by="pat")
        self.assert_fails(self.ask(name), BAD_USAGE, "not promoted")
        self.done("promote", name, by="pia")
        by_id = self.answer(name[:12], "--receipts", self.path("receipts"))
        by_file = self.answer(text)
        self.assertEqual(by_id["kv_digest"], by_file["kv_digest"])
        self.succeed("verify", by_id["receipt"], "-m", model(), "--key", self.path("ledger/ledger.pub"))
        self.assert_fails(self.ask(self.write("altered.txt", POLICY + "!")), BAD_USAGE, "altered")
        self.done("revoke", name, "--reason", "poisoned", by="rob")
        for anchor in (name, text):
            self.assert_fails(self.ask(anchor), BAD_USAGE, "revoked: poisoned")

    def test_scope_validity_and_lineage_are_kept_to(self):
        self.begin()
        name = self.promoted(POLICY, "--tenant", "acme", "--tenant", "beta")
        self.assert_fails(self.ask(name), BAD_USAGE, "--tenant")
        self.assert_fails(self.ask(name, "--tenant", "other"), BAD_USAGE, "not for the tenant other")
        self.answer(name, "--tenant", "beta")
        self.assert_fails(self.ask(self.promoted("old\n", "--not-after", "2001-01-01T00:00:00Z")), BAD_USAGE, "expired")
        self.assert_fails(self.ask(self.promoted("new\n", "--not-before", "2999-01-01T00:00:00Z")), BAD_USAGE, "not valid before")
        self.assert_fails(self.ask(self.promoted("else\n", "--model", "ab" * 32)), BAD_USAGE, "not for the model")
        successor = self.promoted("v2\n", "--tenant", "acme", "--supersedes", name[:8])
        self.assert_fails(self.ask(name, "--tenant", "acme"), BAD_USAGE, "superseded by " + successor)
        self.answer(successor, "--tenant", "acme")

    def test_an_anchors_bounds_hold_and_a_request_only_tightens_them(self):
        self.begin()
        plain = self.answer(self.promoted(POLICY))
        floored = self.promoted(POLICY, "--floor", "0.9")
        strong = self.answer(floored)
        self.assertNotEqual(plain["kv_digest"], strong["kv_digest"])
        self.assertGreaterEqual(min(strong["anchor_mass"]["by_layer"]), 0.899)
        self.assertEqual(strong["kv_digest"], self.answer(floored, "--anchor-floor", "0.1")["kv_digest"])
        self.assertNotEqual(strong["kv_digest"], self.answer(floored, "--anchor-floor", "0.95")["kv_digest"])
        self.assert_fails(self.ask(floored, "--anchor-ceiling", "0.5"), BAD_USAGE, "at least 0.9 and at most 0.5")

    def test_without_a_policy_files_are_taken_in_by_the_ledgers_key(self):
        text = self.write("text.txt", POLICY)
        self.answer(text)
        entry, = self.anchor("list", "--json").lines()
        self.assertEqual(["promoted"] + ["fieldprint.local/ledger"] * 3,
                         [entry["state"]] + [event["key"].split("+")[0] for event in entry["history"]])
        self.answer(text)
        self.assertEqual([entry], self.anchor("list", "--json").lines())
        self.answer(entry["id"])
        # The first policy takes that back.
        self.begin()
        self.assert_fails(self.ask(text), BAD_USAGE, "before this ledger had a policy")
        self.done("verify", entry["id"], by="vic")
        self.done("promote", entry["id"], by="ann")
        self.done("promote", entry["id"], by="pat")
        self.answer(text)

    def test_an_anchor_that_is_too_long_for_a_model_is_not_verified(self):
        self.begin()
        name = self.done("propose", self.write("long.txt", "many words " * 2000), by="ann")["id"]
        self.refused(REFUTED, ["more than the 1024"], "verify", name, "-m", model(), by="vic")
        self.done("verify", name, "-m", model(), "--max-anchor-tokens", "10000", by="vic")


if __name__ == "__main__":
    unittest.main()
