#pragma once

#include <random>

#include "commit/envelope.h"
#include "commit/receipt.h"
#include "commit/segment.h"
#include "ledger/checkpoint.h"
#include "ledger/merkle.h"

/// Receipts for tests: made of random values in range, with a real proof and signature.
namespace fieldprint::commit::sample {

inline const ledger::SignerKey& signer() {
  static const ledger::SignerKey key =
      *ledger::SignerKey::make("example.com/ledger", ledger::PrivateKey::from_seed(ledger::Seed{1, 2, 3}));
  return key;
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t below(std::uint64_t n) { return engine_() % n; }
  float share() { return static_cast<float>(engine_() >> 40) * 0x1p-24f; }  ///< [0, 1)
  Digest digest() {
    Digest out{};
    for (auto& byte : out) byte = static_cast<std::uint8_t>(engine_());
    return out;
  }
  TokenIds tokens(std::size_t count) {
    TokenIds out;
    for (std::size_t i = 0; i < count; ++i) out.push_back(static_cast<std::int32_t>(below(49152)));
    return out;
  }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<core::BlockRecord> blocks(Random& random, core::Segment segment, std::size_t tokens) {
  std::vector<core::BlockRecord> out;
  for (std::size_t begin = 0; begin < tokens; begin += 64) {
    out.push_back({segment, static_cast<std::int32_t>(begin / 64),
                   static_cast<std::int32_t>(std::min<std::size_t>(64, tokens - begin)), random.digest()});
  }
  return out;
}

inline Body body(std::uint64_t seed, std::size_t output_tokens) {
  Random random(seed);
  Body b;
  b.model_digest = random.digest();
  b.canon_version = "canon-1";
  for (std::uint64_t i = 0; i <= seed % 3; ++i) {
    const std::string text = fmt::format("fieldprint-anchor 1\ntype policy\n\nRule {} of {}.", i, seed);
    b.anchors.push_back({sha256(text), Bytes(text.begin(), text.end())});
  }
  b.anchor_bounds = {random.share(), 1};
  b.anchors_at = random.below(5);
  b.sink_tokens = {1};
  b.anchor_tokens = random.tokens(20);
  b.context_tokens = random.tokens(30 + random.below(100));
  b.sampling = {0.8f, 40, 0.95f, 0.05f, 1.1f, random.below(~0ull)};
  b.max_tokens = 512;
  b.stop = {"\n\nUser:", "Fin — é"};
  for (std::uint64_t i = 0; i <= seed % 2; ++i)
    b.inputs.push_back({i == 0 ? "tool_result" : "memory", random.digest()});
  b.output_tokens = random.tokens(output_tokens);
  b.output_digest = digest_of(b.output_tokens);
  b.finish_reason = core::FinishReason::kLength;
  for (const auto& [segment, tokens] :
       {std::pair{core::Segment::kSink, std::size_t{1}},
        std::pair{core::Segment::kAnchors, b.anchor_tokens.size()},
        std::pair{core::Segment::kContext,
                  b.context_tokens.size() + std::max<std::size_t>(output_tokens, 1) - 1}}) {
    for (const auto& block : blocks(random, segment, tokens)) b.kv_blocks.push_back(block);
  }
  for (int layer = 0; layer < 30; ++layer) b.anchor_mass.push_back(random.share());
  const auto parent = parent_of(b);
  b.parent = parent ? *parent : random.digest();
  return b;
}

/// Logs a body as leaf 5 of 9 and seals the receipt.
inline Receipt receipt_of(Body b) {
  std::vector<Digest> leaves;
  for (std::uint8_t i = 0; i < 9; ++i) {
    leaves.push_back(i == 5 ? *commit_digest(b) : ledger::leaf_hash(Bytes{i}));
  }
  const ledger::NodeReader reader = [&](ledger::NodeId id) -> Result<Digest> {
    const auto count = std::size_t{1} << id.level;
    return ledger::root_of(std::span(leaves).subspan(id.index * count, count));
  };
  Receipt r;
  r.body = std::move(b);
  r.leaf_index = 5;
  r.tree_size = 9;
  r.inclusion_proof = *ledger::inclusion_proof(5, 9, reader);
  r.checkpoint = *ledger::sign_checkpoint(9, ledger::root_of(leaves), signer());
  r.verifier_key = signer().verifier().text();
  const Status sealed = seal(r);
  CHECK(sealed.ok());
  return r;
}

inline Receipt receipt(std::uint64_t seed, std::size_t output_tokens = 40) {
  return receipt_of(body(seed, output_tokens));
}

}  // namespace fieldprint::commit::sample
