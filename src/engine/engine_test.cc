#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "base/bounds.h"
#include "engine/engine_testing.h"

namespace fieldprint::engine {
namespace {

using core::FinishReason;
using core::Request;
using core::SequenceId;
using testing::anchored;
using testing::expect_same;
using testing::kContext;
using testing::kEndToken;
using testing::letters;
using testing::request;
using testing::Served;
using testing::tiny_file;
using testing::tiny_tokenizer;

/// A Gemma whose embedding of `token` overflows when it is scaled by sqrt(dim).
weights::testing::GgufBuilder overflowing_at(std::int32_t token) {
  using weights::testing::TinyModel;
  weights::testing::GgufBuilder builder =
      TinyModel{.architecture = weights::Architecture::kGemma3, .untied = true}.builder();
  constexpr std::int32_t kVocab = 32;
  weights::testing::Noise noise(3);
  weights::testing::Bytes data;
  for (std::int32_t row = 0; row < kVocab; ++row) {
    for (std::int64_t i = 0; i < TinyModel::kDim; ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(row == token ? 3e38F : noise.real());
      for (int shift = 0; shift < 32; shift += 8) data.push_back(static_cast<std::uint8_t>(bits >> shift));
    }
  }
  return builder.tensor("token_embd.weight", {TinyModel::kDim, kVocab},
                        static_cast<std::uint32_t>(weights::TensorType::kF32), std::move(data));
}

TEST(Engine, AHistoryThatIsNotFiniteFailsHoweverItIsCutAndIsNeverFoundInTheCache) {
  constexpr std::int32_t kBadToken = 19;
  const weights::testing::TinyFile bad(overflowing_at(kBadToken));
  const auto tokenizer = tokenizer::Tokenizer::make(bad.file().vocabulary()).value();
  Request poisoned = request(200, 4);
  std::replace(poisoned.prompt.begin(), poisoned.prompt.end(), kBadToken, kBadToken + 1);
  const Request clean = poisoned;
  poisoned.prompt[10] = kBadToken;
  for (const std::int32_t chunk : {7, 64, 512}) {
    Served served({.kv_blocks = 40, .prefill_chunk = chunk}, bad.file(), *tokenizer);
    for (int repeat = 0; repeat < 2; ++repeat) {
      const SequenceId id = served.submit(poisoned);
      served.finish();
      ASSERT_TRUE(served.errors.contains(id)) << "chunk " << chunk << ", repeat " << repeat;
      EXPECT_EQ(served.errors.at(id).kind, ErrorKind::kEnvironment);
    }
    const SequenceId id = served.submit(clean);
    served.finish();
    EXPECT_TRUE(served.answers.contains(id));
  }
}

TEST(Engine, AStopStringEndsTheAnswerWhereverTokensAreCut) {
  Served served({.kv_blocks = 40});
  Request plain = request(10, 60, 3);
  const core::Answer whole = served.answer(plain);
  ASSERT_GE(whole.text.size(), 12U);
  for (std::size_t length = 1; length <= 4; ++length) {
    Request stopping = plain;
    stopping.stop = {whole.text.substr(5, length)};
    const SequenceId id = served.submit(stopping);
    served.finish();
    const core::Answer& answer = served.answers.at(id);
    EXPECT_EQ(answer.finish_reason, FinishReason::kStop);
    EXPECT_EQ(answer.text, whole.text.substr(0, whole.text.find(stopping.stop[0])));
    EXPECT_EQ(served.streamed[id], answer.text) << "no part of a stop string may be streamed";
    EXPECT_LT(answer.output.size(), whole.output.size());
    EXPECT_TRUE(std::equal(answer.output.begin(), answer.output.end(), whole.output.begin()));
  }
}

TEST(Engine, TextHeldBackForAStopStringIsGivenOutAtTheEnd) {
  Served served({.kv_blocks = 40});
  Request plain = request(10, 12, 3);
  const core::Answer whole = served.answer(plain);
  plain.stop = {whole.text.substr(whole.text.size() - 2) + "zzz"};
  const SequenceId id = served.submit(plain);
  served.finish();
  expect_same(served.answers.at(id), whole);
  EXPECT_EQ(served.streamed[id], whole.text);
}

TEST(Engine, AnAnswerEndsAtItsLengthOrAtAnEndToken) {
  Served served({.kv_blocks = 40});
  int stopped = 0;
  int cut = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Request hot = request(5, 25, seed);
    hot.sampling.temperature = 4.0F;
    const core::Answer answer = served.answer(hot);
    const auto is_end = [](const core::OutputToken& token) { return token.token == kEndToken; };
    const auto ends = std::count_if(answer.output.begin(), answer.output.end(), is_end);
    if (answer.finish_reason == FinishReason::kStop) {
      ++stopped;
      EXPECT_TRUE(is_end(answer.output.back()));
      EXPECT_EQ(ends, 1);
    } else {
      ++cut;
      EXPECT_EQ(answer.output.size(), 25U);
      EXPECT_EQ(ends, 0);
    }
  }
  EXPECT_GT(stopped, 0);
  EXPECT_GT(cut, 0);
}

TEST(Engine, AnAnswerEndsWhenTheContextIsFull) {
  Served served({.kv_blocks = 12});
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const core::Answer answer = served.answer(request(kContext - 6, 100, seed));
    if (answer.finish_reason == FinishReason::kStop) continue;
    EXPECT_EQ(answer.output.size(), 5U);
    return;
  }
  FAIL() << "every answer ended before the context did";
}

TEST(Engine, LogprobsAreGivenOnlyWhereTheyWereAskedFor) {
  Served served({.kv_blocks = 40});
  Request asked = request(10, 8);
  const core::Answer with = served.answer(asked);
  asked.logprobs = -1;
  const core::Answer without = served.answer(asked);
  ASSERT_EQ(with.output.size(), without.output.size());
  for (std::size_t i = 0; i < with.output.size(); ++i) {
    const core::OutputToken& token = with.output[i];
    EXPECT_EQ(token.token, without.output[i].token);
    EXPECT_LT(token.logprob, 0.0F);
    ASSERT_EQ(token.alternatives.size(), 2U);
    EXPECT_GE(token.alternatives[0].logprob, token.alternatives[1].logprob);
    EXPECT_GE(token.alternatives[0].logprob, token.logprob);
    EXPECT_EQ(without.output[i].logprob, 0.0F);
    EXPECT_TRUE(without.output[i].alternatives.empty());
  }
}

TEST(Engine, WhatThePoolCannotHoldFailsWithWhatToDoAndOthersGoOn) {
  Served served({.kv_blocks = 4});
  const SequenceId big = served.submit(request(300, 10));
  const SequenceId small = served.submit(request(20, 10));
  served.finish();
  ASSERT_TRUE(served.errors.contains(big));
  EXPECT_EQ(served.errors.at(big).kind, ErrorKind::kCaller);
  EXPECT_NE(served.errors.at(big).message.find("blocks"), std::string::npos) << served.errors.at(big).message;
  EXPECT_EQ(served.order, std::vector<SequenceId>{small});
}

TEST(Engine, PreemptionChangesNoAnswer) {
  std::vector<Request> requests;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    requests.push_back(seed % 2 == 0 ? request(62, 150, seed) : anchored(70, 60, 150, seed));
    // No end token, so that every answer grows to its length.
    requests.back().sampling = {.repetition_penalty = seed == 4 ? 1.2F : 1.0F};
  }
  Served roomy({.kv_blocks = 60, .max_batch = 1, .prefix_cache = false});
  Served tight({.kv_blocks = 14, .max_batch = 5});
  for (const Request& each : requests) {
    roomy.submit(each);
    tight.submit(each);
  }
  roomy.finish();
  tight.finish();
  EXPECT_EQ(roomy->stats().preemptions, 0);
  EXPECT_GT(tight->stats().preemptions, 0);
  ASSERT_EQ(roomy.answers.size(), requests.size());
  ASSERT_EQ(tight.answers.size(), requests.size());
  for (const auto& [id, answer] : roomy.answers) {
    expect_same(tight.answers.at(id), answer);
    EXPECT_EQ(tight.kv.at(id), roomy.kv.at(id)) << "sequence " << id;
  }
}

TEST(Engine, ATenantWithManyRequestsDoesNotHoldUpAnother) {
  Served served({.kv_blocks = 40, .max_batch = 1});
  std::vector<SequenceId> many;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    Request each = request(20, 5, seed);
    each.tenant = 1;
    many.push_back(served.submit(each));
  }
  Request other = request(20, 5, 50);
  other.tenant = 2;
  const SequenceId one = served.submit(other);
  served.finish();
  ASSERT_EQ(served.order.size(), 6U);
  EXPECT_EQ(served.order[0], many[0]);
  EXPECT_EQ(served.order[1], one);
}

// Import refuses weights that are not finite; finite ones may still overflow. In the feed-forward of the last
// layer only the logits can show it.
TEST(Engine, ActivationsThatAreNotFiniteFailTheRequest) {
  using weights::testing::TinyModel;
  for (const char* name : {"blk.0.attn_norm.weight", "blk.1.attn_norm.weight", "blk.1.ffn_norm.weight"}) {
    const std::vector<float> norm(TinyModel::kDim, 3.4e38F);
    weights::testing::Bytes data(norm.size() * sizeof(float));
    std::memcpy(data.data(), norm.data(), data.size());
    weights::testing::GgufBuilder builder = TinyModel().builder();
    builder.tensor(name, {TinyModel::kDim}, 0, std::move(data));
    const weights::testing::TinyFile broken(builder);
    const auto backend = backend::select_backend("", 1).value();
    std::string message;
    const auto engine =
        Engine::create(broken.file(), tiny_tokenizer(), *backend, {.kv_blocks = 9},
                       {.text = {},
                        .finished = [&](SequenceId, const core::Answer&) { message = "(answered)"; },
                        .failed = [&](SequenceId, const Error& error) { message = error.message; }})
            .value();
    ASSERT_TRUE(engine->submit(request(10, 4)).ok());
    while (engine->step()) continue;
    EXPECT_NE(message.find("not finite"), std::string::npos) << name << ": " << message;
  }
}

TEST(Engine, RequestsThatNoStepCouldServeAreRefusedWithTheReason) {
  Served served({.kv_blocks = 40});
  const auto refusal = [&](auto&& change) {
    Request bad = request(10, 5);
    change(bad);
    const auto submitted = served->submit(bad);
    if (submitted) return std::string("(accepted)");
    EXPECT_EQ(submitted.error().kind, ErrorKind::kCaller);
    return submitted.error().message;
  };
  const auto names = [](const std::string& message, const char* part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  names(refusal([](Request& r) { r.prompt.clear(); }), "no tokens");
  names(refusal([](Request& r) { r.prompt = letters(kContext, 1); }), "context holds 600");
  names(refusal([](Request& r) { r.prompt[3] = 32; }), "no token 32");
  names(refusal([](Request& r) { r.prompt[3] = -1; }), "no token -1");
  names(refusal([](Request& r) { r.max_tokens = 0; }), "from 1 to 1048576");
  names(refusal([](Request& r) { r.max_tokens = 2000000; }), "from 1 to 1048576");
  names(refusal([](Request& r) { r.layout.anchor_tokens = 11; }), "shorter than its anchors");
  names(refusal([](Request& r) { r.layout.anchor_tokens = 10; }), "no text of its own");
  names(refusal([](Request& r) { r.layout.anchor_tokens = -1; }), "negative");
  names(refusal([](Request& r) { r.anchor_bounds.floor = 1.0F; }), "anchor floor");
  names(refusal([](Request& r) { r.anchor_bounds = {0.5F, 0.25F}; }), "anchor floor");
  names(refusal([](Request& r) { r.stop = {""}; }), "stop string 1 is empty");
  names(refusal([](Request& r) { r.stop = {"x", std::string(4097, 'x')}; }), "stop string 2 has 4097 bytes");
  names(refusal([](Request& r) { r.stop = {"\xff"}; }), "stop string 1 is not UTF-8");
  names(refusal([](Request& r) { r.stop.assign(bounds::kMaxStopStrings + 1, "x"); }), "at most 16 stop");
  names(refusal([](Request& r) { r.logprobs = bounds::kMaxLogprobs + 1; }), "at most 20 alternatives");
  names(refusal([](Request& r) { r.sampling.temperature = -1.0F; }), "temperature");
  names(refusal([](Request& r) { r.sampling.top_p = 0.0F; }), "top");
  EXPECT_FALSE(served->step());
}

TEST(Engine, OptionsOutOfRangeAreRefusedByName) {
  const auto backend = backend::select_backend("", 1).value();
  const auto refusal = [&](const Options& options) {
    const auto engine = Engine::create(tiny_file(), tiny_tokenizer(), *backend, options, {});
    return engine ? std::string("(accepted)") : engine.error().message;
  };
  EXPECT_EQ(refusal({.kv_blocks = 10}), "(accepted)");
  EXPECT_NE(refusal({.kv_blocks = 0}).find("--kv-blocks is 0"), std::string::npos);
  EXPECT_NE(refusal({.kv_blocks = 10, .prefill_chunk = 0}).find("--prefill-chunk is 0"), std::string::npos);
  EXPECT_NE(refusal({.kv_blocks = 10, .max_batch = 1000}).find("--batch is 1000"), std::string::npos);
  EXPECT_NE(refusal({.kv_blocks = 10, .step_tokens = 9000}).find("token budget is 9000"), std::string::npos);
}

}  // namespace
}  // namespace fieldprint::engine
