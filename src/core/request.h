#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "core/block_layout.h"
#include "core/ids.h"
#include "core/sampling.h"

namespace fieldprint::core {

/// Bounds on the anchors' share of attention, as odds γ/(1−γ) of shares γ in [0, 1).
struct AnchorBounds {
  float floor = 0.0F;
  float ceiling = 1.0F;

  float floor_odds() const { return floor / (1.0F - floor); }
  float ceiling_odds() const {
    return ceiling >= 1.0F ? std::numeric_limits<float>::infinity() : ceiling / (1.0F - ceiling);
  }
  bool operator==(const AnchorBounds&) const = default;
};

/// What entered a context besides what its user wrote: a tool's result or a memory.
struct Input {
  std::string kind;  ///< "tool_result" or "memory"
  Digest digest{};   ///< SHA-256 of its bytes
  bool operator==(const Input&) const = default;
};

/// What a caller asks for: a prompt in tokens, and how to go on from it.
struct Request {
  std::string id;
  std::vector<std::int32_t> prompt;  ///< sink, anchors, context; at least one token
  BlockLayout layout;                ///< how many of the prompt's tokens after the first are anchors
  std::vector<Digest> anchors;       ///< ids of the anchors bound, in order
  AnchorBounds anchor_bounds;
  SamplingSettings sampling;
  std::int32_t max_tokens = 128;
  std::vector<std::string> stop;  ///< text that ends the answer and is not part of it
  std::vector<Input> inputs;      ///< what of the prompt came from tools and memories
  std::int32_t logprobs = -1;     ///< alternatives reported a token; -1: no logprobs at all
  bool hold_text = false;         ///< text and answer are given out when they are validated, not before
  TenantId tenant = 0;
  std::string tenant_name;  ///< for whom anchors are scoped; empty: nobody in particular
};

enum class FinishReason : std::uint8_t {
  kStop = 0,    ///< an end-of-generation token or a stop string
  kLength = 1,  ///< max_tokens, or the model's context is full
};

struct TokenAlternative {
  std::int32_t token;
  float logprob;
  bool operator==(const TokenAlternative&) const = default;
};

/// One generated token.
struct OutputToken {
  std::int32_t token = 0;
  float logprob = 0;
  std::vector<TokenAlternative> alternatives;
  bool operator==(const OutputToken&) const = default;
};

/// Digest of one block of the finished sequence's KV.
struct BlockRecord {
  Segment segment;
  std::int32_t index;   ///< within its segment
  std::int32_t tokens;  ///< written slots
  Digest digest;
  bool operator==(const BlockRecord&) const = default;
};

/// The record of table block `block` of a sequence that holds `tokens` tokens.
inline BlockRecord block_record(const BlockLayout& layout, std::int64_t block, std::int64_t tokens,
                                const Digest& digest) {
  const Segment segment = layout.segment_of_block(block);
  std::int64_t first = 0;
  if (segment == Segment::kAnchors) first = 1;
  if (segment == Segment::kContext) first = layout.preface_blocks();
  const std::int64_t end = std::min(layout.block_end(block), tokens);
  return {segment, static_cast<std::int32_t>(block - first),
          static_cast<std::int32_t>(end - layout.block_begin(block)), digest};
}

/// What a finished request leaves behind; everything in it but the counts and times is a function of model,
/// prompt and settings.
struct Answer {
  std::string text;
  std::vector<OutputToken> output;  ///< the last one may be the end-of-generation token, which has no text
  FinishReason finish_reason = FinishReason::kLength;
  std::vector<BlockRecord>
      blocks;                      ///< KV of prompt and output but for the last token, which no step has read
  std::vector<float> anchor_mass;  ///< [layers] mean over heads and generated tokens; empty without anchors

  std::int64_t cached_tokens = 0;   ///< of the prompt, found in the prefix cache at its first admission
  std::int64_t swapped_tokens = 0;  ///< brought back from the swap area, at any of its admissions
  double prefill_seconds = 0;       ///< from first admission to the first token
  double decode_seconds = 0;        ///< from the first token to the last
};

}  // namespace fieldprint::core
