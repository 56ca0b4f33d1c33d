#include "verify/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "backend/select.h"
#include "commit/fields.h"
#include "commit/receipt_sample.h"
#include "tokenizer/pre_tokenizer.h"
#include "verify/generate_testing.h"
#include "weights/tiny_file_testing.h"

namespace fieldprint::verify {
namespace {

using commit::Body;
using commit::Receipt;
using testing::Generated;
using testing::Question;

/// A tiny model with its tokenizer, and answers of it.
struct Tiny {
  explicit Tiny(weights::Architecture architecture)
      : imported(weights::testing::TinyModel{.architecture = architecture}),
        file(imported.file()),
        tokenizer(tokenizer::Tokenizer::make(file.vocabulary()).value()),
        backend(backend::select_backend("scalar", 1).value()) {}

  Generated answer(const Question& question) const {
    return testing::Generator(file, *tokenizer, *backend).answer(question);
  }
  Report verify(const Receipt& receipt, const Options& options = {}) const {
    return verify::verify(receipt, file, *tokenizer, *backend, options).value();
  }

  weights::testing::TinyFile imported;
  const weights::ModelFile& file;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer;
  std::unique_ptr<backend::Backend> backend;
};

const Tiny& llama() {
  static const Tiny tiny(weights::Architecture::kLlama);
  return tiny;
}

const Tiny& gemma() {
  static const Tiny tiny(weights::Architecture::kGemma3);
  return tiny;
}

std::string letters(std::size_t count) {
  weights::testing::Noise noise(3);
  std::string text;
  while (text.size() < count) text += static_cast<char>('a' + noise.next() % 26);
  return text;
}

Question sampled() {
  return {.anchor = "thecabinetisathome",
          .text = letters(90),
          .anchor_bounds = {0.3F, 0.9F},
          .sampling = {.temperature = 1.0F,
                       .top_k = 20,
                       .top_p = 0.95F,
                       .min_p = 0.01F,
                       .repetition_penalty = 1.2F,
                       .seed = 4},
          .max_tokens = 24,
          .stop = {"neverevermore"},
          .inputs = {{"tool_result", sha256("42")}, {"memory", sha256("likes trains")}}};
}

Question greedy() {
  return {
      .anchor = "", .text = letters(40), .anchor_bounds = {}, .sampling = {}, .max_tokens = 30, .stop = {}};
}

/// The answer that the tests alter: it ends by its length, under an anchor with floor and ceiling.
const Generated& sample() {
  static const Generated generated = llama().answer(sampled());
  return generated;
}

std::string first_failure(const Report& report) {
  const commit::Check* failure = report.first_failure();
  EXPECT_EQ(report.verified, failure == nullptr);
  return failure == nullptr ? "" : failure->name;
}

/// A receipt of the only leaf of a ledger that anybody could make, with the parent that the body states.
Receipt forged_after(Body body) {
  static const auto forger = ledger::SignerKey::generate("example.com/ledger").value();
  Receipt receipt;
  receipt.body = std::move(body);
  receipt.tree_size = 1;
  receipt.checkpoint =
      ledger::sign_checkpoint(1, commit::commit_digest(receipt.body).value(), forger).value();
  receipt.verifier_key = forger.verifier().text();
  EXPECT_TRUE(commit::seal(receipt).ok());
  return receipt;
}

/// One that names the parent which it implies, where its blocks fit its tokens.
Receipt forged(Body body) {
  if (const auto parent = commit::parent_of(body); parent.ok()) body.parent = *parent;
  return forged_after(std::move(body));
}

// What a change of one field is, for every type of field.
void alter(std::uint32_t& value) { ++value; }
void alter(std::uint64_t& value) { value ^= 1; }
void alter(std::int32_t& value) { ++value; }
void alter(float& value) { value = std::nextafter(value, 0.0F); }
void alter(std::uint8_t& value) { value ^= 1; }
void alter(Digest& value) { value[7] ^= 0x10; }
void alter(core::FinishReason& value) { value = core::FinishReason::kStop; }
void alter(std::string& value) { value.back() = static_cast<char>(value.back() ^ 1); }
void alter(commit::AnchorRecord& value) { value.canonical.back() ^= 1; }
void alter(commit::Input& value) { alter(value.digest); }
void alter(core::BlockRecord& value) { alter(value.digest); }
template <class T>
void alter(std::vector<T>& value) {
  alter(value.back());
}

/// Calls visit(path, member) for every field that is no map itself.
template <class T, class Visit>
void for_each_leaf_field(const std::string& outer, T& value, const Visit& visit) {
  commit::detail::for_each_field(value, [&](const char* name, auto& member) {
    const std::string path = commit::detail::path_of(outer, name);
    if constexpr (commit::detail::HasFields<std::remove_cvref_t<decltype(member)>>) {
      for_each_leaf_field(path, member, visit);
    } else {
      visit(path, member);
    }
  });
}

template <class T>
std::vector<std::string> paths_of(T value) {
  std::vector<std::string> paths;
  for_each_leaf_field("", value, [&](const std::string& path, auto&) { paths.push_back(path); });
  return paths;
}

template <class T>
T altered(T value, const std::string& target) {
  for_each_leaf_field("", value, [&](const std::string& path, auto& member) {
    if (path == target) alter(member);
  });
  return value;
}

TEST(Verify, AnswersMadeTokenByTokenVerifyOnEveryBackend) {
  for (const Tiny* tiny : {&llama(), &gemma()}) {
    Question extended = greedy();
    extended.text = letters(420);
    Question hot = sampled();
    hot.sampling = {.temperature = 4.0F, .seed = 8};
    hot.max_tokens = 60;
    Question unseen = sampled();
    unseen.anchor_bounds = {0.0F, 0.0F};
    for (Question question : {sampled(), greedy(), extended, hot, unseen}) {
      // The tiny Gemma has no control tokens to write its template with, and so no anchors.
      if (tiny == &gemma()) question.anchor.clear();
      const Receipt receipt = commit::sample::receipt_of(tiny->answer(question).body);
      for (const std::string& name : backend::available_backends()) {
        const auto backend = backend::select_backend(name, 2).value();
        const auto report = verify(receipt, tiny->file, *tiny->tokenizer, *backend, {}).value();
        EXPECT_EQ(first_failure(report), "") << name << ": " << report.first_failure()->detail;
        const Body& body = receipt.body;
        EXPECT_EQ(report.tokens_replayed,
                  static_cast<std::int64_t>(1 + body.anchor_tokens.size() + body.context_tokens.size() +
                                            body.output_tokens.size() - 1));
      }
    }
  }
}

TEST(Verify, AnyAlteredFieldIsNamed) {
  const Receipt good = commit::sample::receipt_of(sample().body);
  ASSERT_EQ(first_failure(llama().verify(good)), "");
  for (const std::string& path : paths_of(good)) {
    const Receipt bad = altered(good, path);
    ASSERT_NE(bad, good) << path;
    EXPECT_TRUE(first_failure(llama().verify(bad)).starts_with(path))
        << path << " → " << first_failure(llama().verify(bad));
  }
}

TEST(Verify, AnyAlteredFieldOfTheBodySealedAnewIsNotInTheLedger) {
  const Receipt good = commit::sample::receipt_of(sample().body);
  for (const std::string& path : paths_of(good.body)) {
    Receipt bad = altered(good, path);
    if (path == "version") continue;  // has only one value that can be sealed
    ASSERT_TRUE(commit::seal(bad).ok()) << path;
    const std::string expected = path == "anchors"                                    ? "anchors[0].id"
                                 : path == "output_tokens" || path == "output_digest" ? "output_digest"
                                                                                      : "inclusion_proof";
    EXPECT_EQ(first_failure(llama().verify(bad)), expected) << path;
  }
  for (const char* path : {"leaf_index", "tree_size", "inclusion_proof", "checkpoint", "verifier_key"}) {
    Receipt bad = altered(good, path);
    ASSERT_TRUE(commit::seal(bad).ok()) << path;
    const std::string expected = std::string_view(path) == "leaf_index" ? "inclusion_proof" : path;
    EXPECT_EQ(first_failure(llama().verify(bad)), expected) << path;
  }
}

/// What replay says of a body that was altered before a ledger of the forger's own was made over it.
std::string replay_names(const std::function<void(Body&)>& change) {
  Body body = sample().body;
  change(body);
  body.output_digest = commit::digest_of(body.output_tokens);
  for (commit::AnchorRecord& anchor : body.anchors) anchor.id = sha256(anchor.canonical);
  const Receipt receipt = forged(body);
  const std::vector<ledger::VerifierKey> trusted = {commit::sample::signer().verifier()};
  EXPECT_EQ(first_failure(llama().verify(receipt, {.trusted = trusted, .kv = {}, .progress = {}})),
            "trusted_key");
  return first_failure(llama().verify(receipt));
}

TEST(Verify, AForgedLedgerDoesNotHideWhatReplayContradicts) {
  EXPECT_EQ(replay_names([](Body&) {}), "");
  EXPECT_EQ(replay_names([](Body& b) { b.model_digest[0] ^= 1; }), "model_digest");
  EXPECT_EQ(replay_names([](Body& b) { b.canon_version += "x"; }), "canon_version");
  EXPECT_EQ(replay_names([](Body& b) { b.anchors[0].canonical.back() ^= 1; }), "anchor_tokens");
  EXPECT_EQ(replay_names([](Body& b) { b.anchors.clear(); }), "anchor_tokens");
  EXPECT_EQ(replay_names([](Body& b) { b.sink_tokens[0] = 5; }), "sink_tokens");
  EXPECT_EQ(replay_names([](Body& b) { b.sink_tokens.push_back(5); }), "sink_tokens");
  EXPECT_EQ(replay_names([](Body& b) { b.anchor_tokens[2] ^= 1; }), "anchor_tokens");
  EXPECT_EQ(replay_names([](Body& b) { b.context_tokens[0] = 40; }), "context_tokens");
  EXPECT_EQ(replay_names([](Body& b) { b.max_tokens += 1; }), "finish_reason");
  EXPECT_EQ(replay_names([](Body& b) { b.max_tokens -= 1; }), "finish_reason");
  EXPECT_EQ(replay_names([](Body& b) { b.finish_reason = core::FinishReason::kStop; }), "finish_reason");
  EXPECT_EQ(replay_names([](Body& b) { b.output_tokens.pop_back(); }), "finish_reason");
  EXPECT_EQ(replay_names([](Body& b) { b.output_tokens.clear(); }), "output_tokens");
  EXPECT_EQ(replay_names([](Body& b) {
              b.stop = {llama().tokenizer->decode(std::span(b.output_tokens).subspan(4, 2))};
            }),
            "finish_reason");
  EXPECT_EQ(replay_names([](Body& b) { b.kv_blocks.pop_back(); }), "kv_blocks");
  EXPECT_EQ(replay_names([](Body& b) { b.kv_blocks[1].tokens -= 1; }), "kv_blocks[1]");
  EXPECT_EQ(replay_names([](Body& b) { b.anchor_mass.pop_back(); }), "anchor_mass");
  EXPECT_EQ(replay_names([](Body& b) { b.anchor_mass[1] = std::nextafter(b.anchor_mass[1], 0.0F); }),
            "anchor_mass[1]");
  for (std::size_t i = 0; i < sample().body.kv_blocks.size(); ++i) {
    EXPECT_EQ(replay_names([&](Body& b) { b.kv_blocks[i].digest[31] ^= 1; }),
              fmt::format("kv_blocks[{}].digest", i));
  }
  for (const std::size_t i : {0, 7, 23}) {
    EXPECT_EQ(replay_names([&](Body& b) { b.output_tokens[i] = b.output_tokens[i] == 4 ? 5 : 4; }),
              fmt::format("output_tokens[{}]", i));
  }
}

TEST(Verify, ABodyThatFollowsOtherRecordsThanItImpliesIsNamed) {
  const auto named = [](const std::function<void(Body&)>& change) {
    Body body = sample().body;
    change(body);
    return first_failure(llama().verify(forged_after(std::move(body))));
  };
  EXPECT_EQ(named([](Body&) {}), "");
  EXPECT_EQ(named([](Body& b) { b.parent[31] ^= 1; }), "parent");
  EXPECT_EQ(named([](Body& b) { b.parent = {}; }), "parent");
  EXPECT_EQ(named([](Body& b) { b.inputs[1].kind = "tool_result"; }), "parent");
  EXPECT_EQ(named([](Body& b) { b.inputs[1].digest[0] ^= 1; }), "parent");
  EXPECT_EQ(named([](Body& b) { b.inputs.pop_back(); }), "parent");
}

TEST(Verify, TokensThatAreNotTheAnchorsTextAreReportedWithTheVersionOfUnicode) {
  Body body = sample().body;
  body.anchor_tokens[2] ^= 1;
  const Report report = llama().verify(forged(body));
  ASSERT_EQ(first_failure(report), "anchor_tokens");
  EXPECT_NE(report.first_failure()->detail.find("Unicode " + tokenizer::unicode_version()),
            std::string::npos);
}

TEST(Verify, AForgedLedgerDoesNotHideSettingsThatWouldHaveGivenAnotherAnswer) {
  const auto contradicted = [](const std::function<void(Body&)>& change) {
    const std::string name = replay_names(change);
    return name.starts_with("output_tokens[") || name.starts_with("anchor_mass[") ||
           name.starts_with("kv_blocks[");
  };
  EXPECT_TRUE(contradicted([](Body& b) { b.sampling.temperature = 0; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.sampling.top_k = 1; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.sampling.top_p = 0.05F; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.sampling.min_p = 0.99F; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.sampling.repetition_penalty = 8.0F; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.sampling.seed ^= 1; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.anchor_bounds.floor = 0.8F; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.anchor_bounds = {0.0F, 0.01F}; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.context_tokens[10] ^= 1; }));
  EXPECT_TRUE(contradicted([](Body& b) { b.context_tokens.pop_back(); }));
}

// Some statements have no effect on the answer, so no replay can contradict them: the seed of a greedy
// answer, a stop string that does not occur, a limit that was not reached, where the inputs came from. Only
// the ledger binds them, and so a verifier needs a key that it trusts.
TEST(Verify, WhatHasNoEffectIsBoundByTheTrustedKeyAlone) {
  const Generated plain = llama().answer(greedy());
  const std::vector<std::function<void(Body&)>> changes = {
      [](Body& b) { b.sampling.seed = 77; },         [](Body& b) { b.sampling.top_k = 3; },
      [](Body& b) { b.stop.push_back("absent"); },   [](Body& b) { b.inputs.push_back({"memory", {}}); },
      [](Body& b) { b.anchor_bounds.floor = 0.5F; },  // there are no anchors
  };
  const std::vector<ledger::VerifierKey> trusted = {commit::sample::signer().verifier()};
  for (const auto& change : changes) {
    Body body = plain.body;
    change(body);
    ASSERT_NE(body, plain.body);
    const Receipt receipt = forged(body);
    EXPECT_EQ(first_failure(llama().verify(receipt)), "");
    EXPECT_EQ(first_failure(llama().verify(receipt, {.trusted = trusted, .kv = {}, .progress = {}})),
              "trusted_key");
  }
}

TEST(Verify, AnotherModelIsNamedWithoutReplay) {
  const Report report = gemma().verify(commit::sample::receipt_of(sample().body));
  EXPECT_EQ(first_failure(report), "model_digest");
  EXPECT_EQ(report.tokens_replayed, 0);
  EXPECT_NE(report.first_failure()->detail.find(to_hex(gemma().file.digest())), std::string::npos);
}

TEST(Verify, ValuesOutOfRangeAreNamedWithoutReplay) {
  const Receipt good = commit::sample::receipt_of(sample().body);
  const auto named = [&](const std::function<void(Receipt&)>& change) {
    Receipt bad = good;
    change(bad);
    const Report report = llama().verify(bad);
    EXPECT_EQ(report.tokens_replayed, 0);
    return first_failure(report);
  };
  EXPECT_EQ(named([](Receipt& r) { r.body.context_tokens[3] = -1; }), "context_tokens");
  EXPECT_EQ(named([](Receipt& r) { r.body.output_tokens[3] = -7; }), "output_tokens");
  EXPECT_EQ(named([](Receipt& r) { r.body.sampling.temperature = -1; }), "sampling.temperature");
  EXPECT_EQ(named([](Receipt& r) { r.body.anchor_bounds.floor = 2; }), "anchor_bounds.floor");
  EXPECT_EQ(named([](Receipt& r) { r.body.anchor_bounds = {0.5F, 0.4F}; }), "anchor_bounds.floor");
}

// log2(e)/temperature would be infinite, and so would the logits that the penalty divides.
TEST(Verify, SettingsThatCannotBeComputedAreNamedInAReceiptThatSomebodyCrafted) {
  const auto named = [](const std::function<void(Body&)>& change) {
    Receipt crafted = forged(sample().body);
    change(crafted.body);
    const Receipt read = commit::decode(commit::encode(crafted).value()).value();
    EXPECT_EQ(read, crafted);
    const Report report = llama().verify(read);
    EXPECT_FALSE(report.verified);
    EXPECT_EQ(report.tokens_replayed, 0);
    const auto out_of_range = [](const commit::Check& c) { return !c.ok && c.detail.starts_with("must be"); };
    const auto found = std::find_if(report.checks.begin(), report.checks.end(), out_of_range);
    return found == report.checks.end() ? "(accepted)" : found->name;
  };
  EXPECT_EQ(named([](Body& b) { b.sampling.temperature = 4e-39F; }), "sampling.temperature");
  EXPECT_EQ(named([](Body& b) { b.sampling.temperature = 0x1p-149F; }), "sampling.temperature");
  EXPECT_EQ(named([](Body& b) { b.sampling.repetition_penalty = 1e-38F; }), "sampling.repetition_penalty");
  EXPECT_EQ(named([](Body& b) { b.sampling.repetition_penalty = 1e38F; }), "sampling.repetition_penalty");
}

TEST(Verify, AHistoryLongerThanTheContextIsNamedWithoutReplay) {
  EXPECT_EQ(replay_names([](Body& b) { b.context_tokens.resize(590, 5); }), "context_tokens");
}

TEST(Verify, KvBlocksKeptInAFileAreCheckedToTheByte) {
  const Receipt receipt = commit::sample::receipt_of(sample().body);
  const auto named = [&](const std::function<void(std::vector<std::uint8_t>&)>& change) {
    Options options;
    options.kv = sample().kv;
    change(*options.kv);
    const Report report = llama().verify(receipt, options);
    const commit::Check* failure = report.first_failure();
    return failure == nullptr ? std::string() : failure->name + ": " + failure->detail;
  };
  EXPECT_EQ(named([](auto&) {}), "");
  // Two layers of one KV head: a page has 64·32 bytes of keys and as many of values.
  const std::size_t page = 2 * 64 * 32;
  const auto flipped = [&](std::size_t block, std::size_t layer, std::size_t byte) {
    return named([&](auto& kv) { kv[(block * 2 + layer) * page + byte] ^= 4; });
  };
  EXPECT_TRUE(
      flipped(2, 1, 5 * 32 + 9)
          .starts_with(
              "kv[2]: block 2 of the file differs first in layer 1, KV head 0, key of slot 5, channel 9:"));
  EXPECT_TRUE(
      flipped(0, 0, 2048 + 7 * 64 + 0)
          .starts_with("kv[0]: block 0 of the file differs first in layer 0, KV head 0, value of slot "
                       "0, channel 7:"));
  // Bytes 0 … 3 of a channel are slots 0, 1, 8, 9; byte 62 is slot 32 + 22.
  EXPECT_TRUE(
      flipped(1, 1, 2048 + 3 * 64 + 2)
          .starts_with(
              "kv[1]: block 1 of the file differs first in layer 1, KV head 0, value of slot 8, channel 3:"));
  EXPECT_TRUE(flipped(1, 0, 2048 + 31 * 64 + 62)
                  .starts_with("kv[1]: block 1 of the file differs first in layer 0, KV head 0, value of "
                               "slot 62, channel 31:"));
  EXPECT_TRUE(named([](auto& kv) { kv.pop_back(); }).starts_with("kv: the file has"));
  EXPECT_TRUE(named([](auto& kv) { kv.clear(); }).starts_with("kv: the file has 0 bytes"));
}

}  // namespace
}  // namespace fieldprint::verify
