#include "commit/segment.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/bounds.h"
#include "cbor/cbor.h"
#include "commit/freeze.h"
#include "commit/receipt_sample.h"
#include "ledger/merkle.h"

namespace fieldprint::commit {
namespace {

/// A body whose prompt has these tokens; `output` of them came after it.
Body body_of(std::size_t anchors, std::size_t context, std::size_t output) {
  sample::Random random(anchors * 1000000 + context * 1000 + output);
  Body body = sample::body(1, 1);
  body.anchor_tokens = random.tokens(anchors);
  body.context_tokens = random.tokens(context);
  body.output_tokens = random.tokens(output);
  body.output_digest = digest_of(body.output_tokens);
  const core::BlockLayout layout{static_cast<std::int64_t>(anchors)};
  const auto tokens = static_cast<std::int64_t>(1 + anchors + context + output - 1);
  body.kv_blocks.clear();
  for (std::int64_t i = 0; i < layout.blocks_for(tokens); ++i) {
    body.kv_blocks.push_back(core::block_record(layout, i, tokens, random.digest()));
  }
  return body;
}

std::vector<SegmentTokens> segments_of(const Body& body) {
  const std::vector<Bytes> chain = chain_of(body).value();
  std::vector<SegmentTokens> out;
  for (std::size_t i = 1; i < chain.size(); ++i) {
    const SegmentRecord segment = decode_segment(chain[i]).value();
    out.push_back({segment.first, segment.tokens});
  }
  return out;
}

using Spans = std::vector<SegmentTokens>;

TEST(Segment, AnOutputTokenStandsInTheSegmentOfTheBlockThatItsKvCompletes) {
  EXPECT_EQ(segments_of(body_of(0, 60, 4)), Spans{}) << "the fourth token's KV was never computed";
  EXPECT_EQ(segments_of(body_of(0, 60, 5)), (Spans{{0, 4}}));
  EXPECT_EQ(segments_of(body_of(0, 60, 68)), (Spans{{0, 4}}));
  EXPECT_EQ(segments_of(body_of(0, 60, 69)), (Spans{{0, 4}, {4, 64}}));
  EXPECT_EQ(segments_of(body_of(70, 60, 69)), (Spans{{0, 4}, {4, 64}})) << "anchors shift nothing";
  EXPECT_EQ(segments_of(body_of(0, 64, 64)), Spans{}) << "the prompt alone fills the first block";
  EXPECT_EQ(segments_of(body_of(0, 64, 65)), (Spans{{0, 64}}));
  EXPECT_EQ(segments_of(body_of(3, 65, 200)), (Spans{{0, 63}, {63, 64}, {127, 64}}));
  EXPECT_EQ(segments_of(body_of(3, 0, 65)), (Spans{{0, 64}}));
  EXPECT_EQ(segments_of(body_of(0, 1, 1)), Spans{});
}

TEST(Segment, TheOpenRecordHoldsTheBlocksThatThePromptFills) {
  const auto blocks_of = [](const Body& body) {
    return decode_open(chain_of(body).value().front()).value().kv_blocks;
  };
  const auto first = [](const Body& body, std::ptrdiff_t count) {
    return std::vector(body.kv_blocks.begin(), body.kv_blocks.begin() + count);
  };
  for (const auto& [anchors, context, output, blocks] : {std::tuple{0, 63, 40, 1},
                                                         {0, 64, 40, 2},
                                                         {0, 65, 40, 2},
                                                         {0, 128, 1, 3},
                                                         {70, 63, 3, 3},
                                                         {64, 64, 3, 3},
                                                         {65, 64, 3, 4},
                                                         {1, 0, 1, 2}}) {
    const Body body = body_of(static_cast<std::size_t>(anchors), static_cast<std::size_t>(context),
                              static_cast<std::size_t>(output));
    EXPECT_EQ(blocks_of(body), first(body, blocks)) << anchors << " " << context << " " << output;
  }
}

TEST(Segment, EachRecordNamesTheLeafBeforeItAndTheBodyTheLast) {
  for (const std::size_t output : {1, 5, 64, 69, 200, 1000}) {
    const Body body = body_of(20, 60, output);
    const std::vector<Bytes> chain = chain_of(body).value();
    for (std::size_t i = 1; i < chain.size(); ++i) {
      const SegmentRecord segment = decode_segment(chain[i]).value();
      EXPECT_EQ(segment.parent, ledger::leaf_hash(chain[i - 1]));
      const auto begin = body.output_tokens.begin() + segment.first;
      EXPECT_EQ(segment.tokens_digest, digest_of({begin, begin + segment.tokens}));
    }
    EXPECT_EQ(parent_of(body).value(), ledger::leaf_hash(chain.back()));
  }
}

TEST(Segment, TheSegmentsOfAnAnswerAreAllItsFullBlocksAndCutItsTokensWithoutGaps) {
  for (std::size_t seed = 0; seed < 300; ++seed) {
    const Body body = body_of(seed * 7 % 150, seed * 13 % 200, 1 + seed * 29 % 300);
    const std::vector<Bytes> chain = chain_of(body).value();
    std::vector<core::BlockRecord> blocks = decode_open(chain.front()).value().kv_blocks;
    std::int32_t next = 0;
    for (std::size_t i = 1; i < chain.size(); ++i) {
      const SegmentRecord segment = decode_segment(chain[i]).value();
      EXPECT_EQ(segment.first, next);
      next += segment.tokens;
      blocks.push_back(segment.kv_block);
    }
    const core::BlockLayout layout{static_cast<std::int64_t>(body.anchor_tokens.size())};
    const auto prompt = static_cast<std::int64_t>(1 + body.anchor_tokens.size() + body.context_tokens.size());
    const auto computed = prompt + static_cast<std::int64_t>(body.output_tokens.size()) - 1;
    const auto full = static_cast<std::ptrdiff_t>(layout.full_blocks(computed));
    EXPECT_EQ(blocks, std::vector(body.kv_blocks.begin(), body.kv_blocks.begin() + full));
    const std::int64_t filled = layout.block_end(static_cast<std::int64_t>(full) - 1) - prompt;
    EXPECT_EQ(next, std::max<std::int64_t>(filled, 0));
  }
}

TEST(Segment, AnyStatementOfTheBodyButItsLastTokensAndItsOutcomeChangesTheParent) {
  const Body body = body_of(70, 200, 200);
  const Digest parent = parent_of(body).value();
  const auto changes = [&](const std::function<void(Body&)>& change) {
    Body other = body;
    change(other);
    EXPECT_NE(other, body);
    const auto changed = parent_of(other);
    return !changed.ok() || *changed != parent;
  };
  EXPECT_TRUE(changes([](Body& b) { b.model_digest[0] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.canon_version += "x"; }));
  EXPECT_TRUE(changes([](Body& b) { b.anchors[1].id[0] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { std::swap(b.anchors[0], b.anchors[1]); }));
  EXPECT_TRUE(changes([](Body& b) { b.anchor_bounds.floor *= 0.5f; }));
  EXPECT_TRUE(changes([](Body& b) { ++b.anchors_at; }));
  EXPECT_TRUE(changes([](Body& b) { b.sink_tokens[0] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.anchor_tokens[69] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.context_tokens[199] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.sampling.seed ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { ++b.max_tokens; }));
  EXPECT_TRUE(changes([](Body& b) { b.stop.pop_back(); }));
  EXPECT_TRUE(changes([](Body& b) { b.inputs[1].digest[3] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.inputs.pop_back(); }));
  EXPECT_TRUE(changes([](Body& b) { b.output_tokens[0] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.output_tokens[183] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.kv_blocks[0].digest[0] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.kv_blocks[8].digest[0] ^= 1; }));
  EXPECT_TRUE(changes([](Body& b) { b.kv_blocks.pop_back(); }));
  EXPECT_TRUE(changes([](Body& b) { b.kv_blocks[9].tokens -= 1; }));
  // 200 + 200 − 1 tokens of context: six full blocks, and 15 tokens of the seventh, which only the body
  // holds.
  EXPECT_FALSE(changes([](Body& b) { b.output_tokens[184] ^= 1; }));
  EXPECT_FALSE(changes([](Body& b) { b.kv_blocks[9].digest[0] ^= 1; }));
  EXPECT_FALSE(changes([](Body& b) { b.finish_reason = core::FinishReason::kStop; }));
  EXPECT_FALSE(changes([](Body& b) { b.anchor_mass[0] *= 0.5f; }));
  EXPECT_FALSE(changes([](Body& b) { b.parent[0] ^= 1; }));
}

TEST(Segment, BodiesWhoseBlocksDoNotFitTheirTokensAreTheCallersError) {
  const auto refusal = [](const std::function<void(Body&)>& change) {
    Body body = body_of(70, 60, 80);
    change(body);
    const auto chain = chain_of(body);
    if (chain.ok()) return std::string("(accepted)");
    EXPECT_EQ(chain.error().kind, ErrorKind::kCaller);
    return chain.error().message;
  };
  EXPECT_EQ(refusal([](Body&) {}), "(accepted)");
  EXPECT_EQ(refusal([](Body& b) { b.kv_blocks.pop_back(); }),
            "5 KV blocks are stated, but 210 tokens fill 6");
  EXPECT_EQ(refusal([](Body& b) { std::swap(b.kv_blocks[3], b.kv_blocks[4]); }),
            "KV block 3 does not hold the tokens that stand there");
  EXPECT_EQ(refusal([](Body& b) { b.kv_blocks[0].segment = core::Segment::kContext; }),
            "KV block 0 does not hold the tokens that stand there");
  EXPECT_EQ(refusal([](Body& b) { b.kv_blocks[2].tokens = 64; }),
            "KV block 2 does not hold the tokens that stand there");
  EXPECT_EQ(refusal([](Body& b) { b.output_tokens.clear(); }), "the answer has no tokens");
  EXPECT_EQ(refusal([](Body& b) { b.sink_tokens.clear(); }), "a history begins with one sink token");
  EXPECT_EQ(refusal([](Body& b) { b.sampling.top_p = 2; }).substr(0, 36),
            "open record field sampling.top_p: mu");
}

core::Request request_of(const Body& body) {
  core::Request request;
  request.prompt = body.sink_tokens;
  for (const TokenIds* part : {&body.anchor_tokens, &body.context_tokens}) {
    request.prompt.insert(request.prompt.end(), part->begin(), part->end());
  }
  request.layout.anchor_tokens = static_cast<std::int64_t>(body.anchor_tokens.size());
  request.anchor_bounds = body.anchor_bounds;
  request.sampling = body.sampling;
  request.max_tokens = body.max_tokens;
  request.stop = body.stop;
  return request;
}

TEST(Segment, WhatIsFrozenAtTheStartIsWhatTheFinishedBodysChainBeginsWith) {
  const Body body = body_of(70, 200, 150);
  const Origin origin{body.model_digest, body.canon_version, body.anchors, body.anchors_at, body.inputs};
  const core::Request request = request_of(body);
  core::Answer answer;
  for (const std::int32_t token : body.output_tokens) answer.output.push_back({token, 0, {}});
  answer.finish_reason = body.finish_reason;
  answer.blocks = body.kv_blocks;
  answer.anchor_mass = body.anchor_mass;
  const Body frozen = freeze(origin, request, answer);
  Body expected = body;
  expected.parent = parent_of(body).value();
  EXPECT_EQ(frozen, expected);
  const auto prompt_blocks = std::span(body.kv_blocks).first(1 + 2 + 3);
  EXPECT_EQ(encode(freeze_open(origin, request, prompt_blocks)).value(), chain_of(frozen).value().front());
}

VerdictRecord verdict() {
  sample::Random random(9);
  return {{random.digest(), random.digest()}, false, "page 3 differs", 77, 12, "scalar"};
}

TEST(Segment, RecordsRoundTrip) {
  const Body body = body_of(20, 60, 100);
  const std::vector<Bytes> chain = chain_of(body).value();
  const OpenRecord open = decode_open(chain[0]).value();
  EXPECT_EQ(open, open_record(body));
  EXPECT_EQ(open.prompt_tokens, 81u);
  EXPECT_EQ(encode(open).value(), chain[0]);
  EXPECT_EQ(encode(decode_segment(chain[1]).value()).value(), chain[1]);
  EXPECT_EQ(decode_verdict(encode(verdict()).value()).value(), verdict());
  VerdictRecord good = verdict();
  good.good = true;
  good.reason.clear();
  EXPECT_EQ(decode_verdict(encode(good).value()).value(), good);
}

TEST(Segment, RecordsRefuseEveryPrefixAndEveryExtension) {
  std::vector<Bytes> leaves = chain_of(body_of(20, 60, 100)).value();
  leaves.push_back(encode(verdict()).value());
  for (Bytes leaf : leaves) {
    for (const std::size_t size : {leaf.size() - 1, leaf.size() / 2, std::size_t{1}, std::size_t{0}}) {
      const auto part = std::span(leaf).first(size);
      EXPECT_FALSE(decode_open(part).ok() || decode_segment(part).ok() || decode_verdict(part).ok());
    }
    leaf.push_back(0);
    EXPECT_FALSE(decode_open(leaf).ok() || decode_segment(leaf).ok() || decode_verdict(leaf).ok());
  }
}

TEST(Segment, ARecordIsNotReadAsAnother) {
  const std::vector<Bytes> chain = chain_of(body_of(0, 60, 100)).value();
  EXPECT_NE(decode_segment(chain[0]).error().message.find("segment record field"), std::string::npos);
  EXPECT_NE(decode_open(chain[1]).error().message.find("open record field"), std::string::npos);
  Bytes renamed = chain[1];
  const std::string_view from = "segment";
  const auto at = std::search(renamed.begin(), renamed.end(), from.begin(), from.end());
  *at = 'S';
  EXPECT_EQ(decode_segment(renamed).error().message,
            "segment record field record: expected \"segment\", found \"Segment\"");
}

TEST(Segment, ValuesOutOfRangeAreRefusedByName) {
  const std::vector<Bytes> chain = chain_of(body_of(20, 60, 100)).value();
  const auto open = [&](const std::function<void(OpenRecord&)>& change) {
    OpenRecord record = decode_open(chain[0]).value();
    change(record);
    const auto leaf = encode(record);
    return leaf ? "(accepted)" : leaf.error().message.substr(0, leaf.error().message.find(':'));
  };
  EXPECT_EQ(open([](auto& r) { r.inputs[0].kind = "rumour"; }), "open record field inputs[0].kind");
  EXPECT_EQ(open([](auto& r) { r.inputs.resize(1025, r.inputs[0]); }), "open record field inputs");
  EXPECT_EQ(open([](auto& r) { r.prompt_tokens = 0; }), "open record field prompt_tokens");
  EXPECT_EQ(open([](auto& r) { r.anchors.resize(65); }), "open record field anchors");
  EXPECT_EQ(open([](auto& r) { r.kv_blocks[1].index = -1; }), "open record field kv_blocks[1].index");
  EXPECT_EQ(open([](auto& r) { r.sampling.min_p = std::numeric_limits<float>::quiet_NaN(); }),
            "open record field sampling.min_p");
  const auto segment = [&](const std::function<void(SegmentRecord&)>& change) {
    SegmentRecord record = decode_segment(chain[1]).value();
    change(record);
    const auto leaf = encode(record);
    return leaf ? "(accepted)" : leaf.error().message.substr(0, leaf.error().message.find(':'));
  };
  EXPECT_EQ(segment([](auto& r) { r.first = -1; }), "segment record field first");
  EXPECT_EQ(segment([](auto& r) { r.tokens = 0; }), "segment record field tokens");
  EXPECT_EQ(segment([](auto& r) { r.tokens = 65; }), "segment record field tokens");
  EXPECT_EQ(segment([](auto& r) { r.kv_block.tokens = 63; }), "segment record field kv_block.tokens");
  EXPECT_EQ(segment([](auto& r) { r.kv_block.segment = core::Segment::kAnchors; }),
            "segment record field kv_block.segment");
  const auto named = [&](const std::function<void(VerdictRecord&)>& change) {
    VerdictRecord record = verdict();
    change(record);
    const auto leaf = encode(record);
    return leaf ? "(accepted)" : leaf.error().message.substr(0, leaf.error().message.find(':'));
  };
  EXPECT_EQ(named([](auto& r) { r.commits.clear(); }), "verdict record field commits");
  EXPECT_EQ(named([](auto& r) { r.commits.resize(1025); }), "verdict record field commits");
  EXPECT_EQ(named([](auto& r) { r.good = true; }), "verdict record field reason");
  EXPECT_EQ(named([](auto& r) { r.reason.clear(); }), "verdict record field reason");
  EXPECT_EQ(named([](auto& r) { r.reexecuted_on = std::string(65, 'a'); }),
            "verdict record field reexecuted_on");
}

TEST(Segment, TheLargestVerdictFitsALeaf) {
  VerdictRecord largest = verdict();
  largest.commits.resize(bounds::kMaxVerdictCommits);
  largest.reason = std::string(bounds::kMaxVerdictReasonBytes, 'a');
  largest.head = ~std::uint64_t{0};
  largest.pages_checked = ~std::uint32_t{0};
  largest.reexecuted_on = std::string(bounds::kMaxBackendNameBytes, 'a');
  EXPECT_LE(encode(largest).value().size(), static_cast<std::size_t>(bounds::kMaxLeafBytes));
}

TEST(Segment, AnOpenRecordTooLongForALeafStandsThereByItsDigest) {
  const Body body = body_of(0, 1700 * 64, 70);
  const std::vector<Bytes> chain = chain_of(body).value();
  EXPECT_LT(chain[0].size(), 100u);
  EXPECT_EQ(record_kind(chain[0]), "open");
  EXPECT_NE(decode_open(chain[0]).error().message.find("holds its digest alone"), std::string::npos);
  EXPECT_EQ(decode_segment(chain[1]).value().parent, ledger::leaf_hash(chain[0]));
  Body other = body;
  other.kv_blocks[900].digest[5] ^= 1;
  EXPECT_NE(chain_of(other).value()[0], chain[0]);
}

TEST(Segment, ALeafSaysWhatItIs) {
  const Body body = body_of(20, 60, 100);
  const std::vector<Bytes> chain = chain_of(body).value();
  EXPECT_EQ(record_kind(chain[0]), "open");
  EXPECT_EQ(record_kind(chain[1]), "segment");
  EXPECT_EQ(record_kind(encode(verdict()).value()), "verdict");
  EXPECT_EQ(record_kind(encode_body(body).value()), "answer");
  EXPECT_EQ(record_kind(leaf_of(Bytes(65536, 1))), "answer");
  const auto named = [](std::string_view name) {
    cbor::CborWriter writer;
    writer.map(1);
    writer.text("record");
    writer.text(name);
    return Bytes(writer.take());
  };
  EXPECT_EQ(record_kind(named("anchor")), "anchor");
  EXPECT_EQ(record_kind(named("policy")), "policy");
  EXPECT_EQ(record_kind(named("rumour")), "");
  EXPECT_EQ(record_kind({}), "");
  EXPECT_EQ(record_kind(Bytes{0x80}), "");
  EXPECT_EQ(record_kind(Bytes{0xa0}), "");
  EXPECT_EQ(record_kind(Bytes(40, 0xff)), "");
}

}  // namespace
}  // namespace fieldprint::commit
