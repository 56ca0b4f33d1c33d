#include "backend/scalar/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/bounds.h"
#include "exact/arith.h"

namespace fieldprint::backend::scalar {
namespace {

using exact::kPageTokens;

/// Softmax over some tokens: maximum score, Σ exp2(score − maximum), and the output weighted alike.
struct State {
  float maximum = -std::numeric_limits<float>::infinity();
  float denominator = 0.0F;
  std::array<float, bounds::kMaxHeadDim> output{};

  bool empty() const { return std::isinf(maximum); }
};

/// Appends `next` to `state`. The order of merges is part of the contract.
void merge(State& state, const State& next, std::int64_t dim) {
  if (next.empty()) return;
  if (state.empty()) {
    state = next;
    return;
  }
  const float maximum = next.maximum > state.maximum ? next.maximum : state.maximum;
  const float a = exact::exp2(state.maximum - maximum);
  const float b = exact::exp2(next.maximum - maximum);
  state.maximum = maximum;
  state.denominator = std::fma(state.denominator, a, next.denominator * b);
  for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d) {
    state.output[d] = std::fma(state.output[d], a, next.output[d] * b);
  }
}

struct Page {
  const std::int8_t* keys;     // [64][D]
  const std::int8_t* values;   // [D][64]
  const std::uint8_t* scales;  // bf16 [64] of the keys, then of the values

  float key_scale(std::int64_t j) const { return scale(j); }
  float value_scale(std::int64_t j) const { return scale(kPageTokens + j); }

 private:
  float scale(std::int64_t i) const {
    std::uint16_t bits = 0;
    std::memcpy(&bits, scales + 2 * i, 2);
    return exact::from_bf16(bits);
  }
};

Page page_of(const AttentionArgs& args, std::int32_t block, std::int64_t kv_head) {
  const std::uint8_t* base = args.kv.pool + block * args.kv.block_stride + args.kv.layer_offset +
                             kv_head * page_bytes(args.head_dim);
  const auto* keys = reinterpret_cast<const std::int8_t*>(base);
  return {keys, keys + kPageTokens * args.head_dim, base + 2 * kPageTokens * args.head_dim};
}

/// One query row.
struct Query {
  const std::int8_t* q;
  float scale;
};

/// The state of tokens [first, last) of one page.
State tile(const AttentionArgs& args, const Page& page, const Query& query, std::int64_t first,
           std::int64_t last) {
  State state;
  if (first >= last) return state;
  const std::int64_t dim = args.head_dim;
  std::array<float, kPageTokens> weight{};

  for (std::int64_t j = first; j < last; ++j) {
    std::int32_t dot = 0;
    for (std::int64_t d = 0; d < dim; ++d) dot += query.q[d] * page.keys[j * dim + d];
    const float score = static_cast<float>(dot) * (query.scale * page.key_scale(j));
    weight[static_cast<std::size_t>(j)] = score;
    state.maximum = score > state.maximum ? score : state.maximum;
  }

  // 64 · 2^23 = 2^29 fits in the integer sum. Unsigned, because scores that are no numbers, in a row that
  // will be refused, may wrap it.
  std::uint32_t denominator = 0;
  float largest = 0.0F;
  for (std::int64_t j = first; j < last; ++j) {
    float& w = weight[static_cast<std::size_t>(j)];
    const float p = exact::exp2(w - state.maximum);
    denominator += static_cast<std::uint32_t>(exact::round_product(p, exact::kDenominatorOne));
    w = p * page.value_scale(j);
    largest = w > largest ? w : largest;
  }
  state.denominator = static_cast<float>(static_cast<std::int32_t>(denominator)) * 0x1p-23F;

  // Every value zero or nearly so: the output is zero, and the ratio below would not be finite.
  if (largest < exact::kSmallestWeight) return state;
  const float ratio = exact::kWeightMax / largest;
  const float unit = largest / exact::kWeightMax;
  std::array<std::uint32_t, kPageTokens> integer{};
  for (std::int64_t j = first; j < last; ++j) {
    const std::size_t i = static_cast<std::size_t>(j);
    integer[i] = static_cast<std::uint32_t>(exact::round_product(weight[i], ratio));
  }
  for (std::int64_t d = 0; d < dim; ++d) {
    // 65535 · 127 · 64 < 2^30 fits.
    std::uint32_t dot = 0;
    for (std::int64_t j = first; j < last; ++j) {
      const std::int32_t value = page.values[d * kPageTokens + j];
      dot += integer[static_cast<std::size_t>(j)] * static_cast<std::uint32_t>(value);
    }
    state.output[static_cast<std::size_t>(d)] = static_cast<float>(static_cast<std::int32_t>(dot)) * unit;
  }
  return state;
}

/// The state of context tokens [first, last), counted from the context's start: tiles into chunks, chunks
/// into groups, groups into the row.
State context_state(const AttentionArgs& args, const std::int32_t* blocks, std::int64_t kv_head,
                    const Query& query, std::int64_t first, std::int64_t last) {
  State row;
  State group;
  State chunk;
  const std::int64_t tiles = (last + kPageTokens - 1) / kPageTokens;
  for (std::int64_t t = first / kPageTokens; t < tiles; ++t) {
    const Page page = page_of(args, blocks[t], kv_head);
    const std::int64_t start = t * kPageTokens;
    merge(chunk,
          tile(args, page, query, std::max<std::int64_t>(first - start, 0),
               std::min<std::int64_t>(last - start, kPageTokens)),
          args.head_dim);
    const bool end = t + 1 == tiles;
    if (end || (t + 1) % exact::kChunkTiles == 0) {
      merge(group, chunk, args.head_dim);
      chunk = State{};
    }
    if (end || (t + 1) % exact::kGroupTiles == 0) {
      merge(row, group, args.head_dim);
      group = State{};
    }
  }
  return row;
}

float* stored_state(const AttentionArgs& args, std::int64_t token, std::int64_t head, int segment) {
  return args.states + ((token * args.heads + head) * 2 + segment) * attention_state_floats(args.head_dim);
}

void store(const AttentionArgs& args, const State& state, std::int64_t token, std::int64_t head,
           int segment) {
  float* out = stored_state(args, token, head, segment);
  out[0] = state.maximum;
  out[1] = state.denominator;
  std::copy_n(state.output.begin(), args.head_dim, out + 2);
}

State load(const AttentionArgs& args, std::int64_t token, std::int64_t head, int segment) {
  const float* in = stored_state(args, token, head, segment);
  State state;
  state.maximum = in[0];
  state.denominator = in[1];
  std::copy_n(in + 2, args.head_dim, state.output.begin());
  return state;
}

Query query_of(const AttentionArgs& args, std::int64_t token, std::int64_t head) {
  const std::int64_t row = token * args.heads + head;
  return {args.q + row * args.head_dim, args.q_scale[row]};
}

/// Sink and anchors of one query.
void preface_query(const AttentionArgs& args, const AttentionSequence& sequence, std::int64_t query,
                   std::int64_t kv_head) {
  const std::int64_t token = sequence.first_query + query;
  const std::int64_t position = sequence.first_position + query;
  const std::int64_t anchors_seen = std::min<std::int64_t>(position, sequence.anchor_tokens);
  const bool sink_seen = args.window == 0 || position < args.window;
  const std::int64_t group = args.heads / args.kv_heads;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const Query row = query_of(args, token, head);
    store(args, tile(args, page_of(args, sequence.blocks[0], kv_head), row, 0, sink_seen ? 1 : 0), token,
          head, 0);
    State anchors;
    for (std::int64_t start = 0; start < anchors_seen; start += kPageTokens) {
      const Page page = page_of(args, sequence.blocks[1 + start / kPageTokens], kv_head);
      merge(anchors, tile(args, page, row, 0, std::min<std::int64_t>(anchors_seen - start, kPageTokens)),
            args.head_dim);
    }
    store(args, anchors, token, head, 1);
  }
}

/// Holds the anchors' share between floor and ceiling, and returns the share given.
/// Both denominators are at least about 1 in their own frames, so no ratio here overflows.
float apply_mass_policy(const AttentionSequence& sequence, State& anchors, const State& context) {
  if (anchors.empty()) return 0.0F;
  if (context.empty()) return 1.0F;
  const float maximum = std::max(anchors.maximum, context.maximum);
  float mine = anchors.denominator * exact::exp2(anchors.maximum - maximum);
  const float others = context.denominator * exact::exp2(context.maximum - maximum);
  float odds = -1.0F;
  if (mine < sequence.floor_odds * others) odds = sequence.floor_odds;
  if (mine > sequence.ceiling_odds * others) odds = sequence.ceiling_odds;
  if (odds >= 0.0F) {
    const float wanted = context.denominator * odds;
    const float factor = wanted / anchors.denominator;
    for (float& value : anchors.output) value *= factor;
    anchors.denominator = wanted;
    anchors.maximum = context.maximum;
    mine = odds * others;
  }
  return mine / (mine + others);
}

void context_query(const AttentionArgs& args, const ContextItem& item, std::int64_t query) {
  const AttentionSequence& sequence = args.sequences[item.sequence];
  const std::int64_t token = sequence.first_query + query;
  const std::int64_t position = sequence.first_position + query;
  const std::int64_t context_start = 1 + sequence.anchor_tokens;
  const std::int64_t anchor_blocks = (sequence.anchor_tokens + kPageTokens - 1) / kPageTokens;
  const std::int64_t last = std::max<std::int64_t>(position + 1 - context_start, 0);
  const std::int64_t first =
      args.window == 0 ? 0 : std::max<std::int64_t>(position + 1 - args.window - context_start, 0);
  const std::int64_t group = args.heads / args.kv_heads;

  for (std::int64_t head = item.kv_head * group; head < (item.kv_head + 1) * group; ++head) {
    const State context = context_state(args, sequence.blocks + 1 + anchor_blocks, item.kv_head,
                                        query_of(args, token, head), first, last);
    State state = load(args, token, head, 0);
    State anchors = load(args, token, head, 1);
    args.anchor_mass[token * args.heads + head] = apply_mass_policy(sequence, anchors, context);
    merge(state, anchors, args.head_dim);
    merge(state, context, args.head_dim);
    const float inverse = 1.0F / state.denominator;
    float* out = args.out + (token * args.heads + head) * args.head_dim;
    for (std::int64_t d = 0; d < args.head_dim; ++d)
      out[d] = state.output[static_cast<std::size_t>(d)] * inverse;
  }
}

}  // namespace

void attention_preface(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const PrefaceItem& item = args.preface_items[i];
    std::int64_t counted = 0;
    for (std::int64_t s = 0; s < item.sequences; ++s) {
      const AttentionSequence& sequence = args.sequences[item.first_sequence + s];
      const std::int64_t first = std::max<std::int64_t>(item.query_begin - counted, 0);
      const std::int64_t last = std::min<std::int64_t>(item.query_end - counted, sequence.queries);
      for (std::int64_t query = first; query < last; ++query) {
        preface_query(args, sequence, query, item.kv_head);
      }
      counted += sequence.queries;
    }
  }
}

void attention_context(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const ContextItem& item = args.context_items[i];
    for (std::int64_t query = item.query_begin; query < item.query_end; ++query) {
      context_query(args, item, query);
    }
  }
}

}  // namespace fieldprint::backend::scalar
