#include "backend/scalar/attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/bounds.h"
#include "exact/arith.h"

namespace fieldprint::backend::scalar {
namespace {

using exact::kPageTokens;
using exact::kTileTokens;

/// Softmax over some tokens: a reference near the maximum score in log2, Σ weight, and the values so
/// weighted, both in units of 2^reference.
struct State {
  float reference = -std::numeric_limits<float>::infinity();
  float denominator = 0.0F;
  std::array<float, bounds::kMaxHeadDim> output{};

  bool empty() const { return std::isinf(reference); }
};

/// Appends `next` to `state`. The order of folds is part of the contract.
void fold(State& state, const State& next, std::int64_t dim) {
  if (next.empty()) return;
  if (state.empty()) {
    state = next;
    return;
  }
  const std::size_t size = static_cast<std::size_t>(dim);
  if (next.reference > state.reference + exact::kFoldHeadroom) {
    const float a = exact::exp2(state.reference - next.reference);
    state.denominator = std::fma(state.denominator, a, next.denominator);
    for (std::size_t d = 0; d < size; ++d) state.output[d] = std::fma(state.output[d], a, next.output[d]);
    state.reference = next.reference;
    return;
  }
  const float b = exact::exp2(next.reference - state.reference);
  state.denominator = std::fma(next.denominator, b, state.denominator);
  for (std::size_t d = 0; d < size; ++d) state.output[d] = std::fma(next.output[d], b, state.output[d]);
}

struct Page {
  const std::int8_t* keys;    // [64][D]
  const std::int8_t* values;  // [D][64]
};

Page page_of(const AttentionArgs& args, std::int32_t block, std::int64_t kv_head) {
  const auto* keys =
      reinterpret_cast<const std::int8_t*>(args.kv.pool + block * args.kv.block_stride +
                                           args.kv.layer_offset + kv_head * page_bytes(args.head_dim));
  return {keys, keys + kPageTokens * args.head_dim};
}

/// One query row.
struct Query {
  const std::int8_t* q;
  std::int32_t step;

  float unit() const { return static_cast<float>(step) * exact::kStepUnit; }
};

std::int32_t score(const Query& query, const Page& page, std::int64_t slot, std::int64_t dim) {
  std::int32_t dot = 0;
  for (std::int64_t d = 0; d < dim; ++d) dot += query.q[d] * page.keys[slot * dim + d];
  return dot;
}

std::int32_t value(const Page& page, std::int64_t slot, std::int64_t channel) {
  return page.values[channel * kPageTokens + exact::value_slot(static_cast<std::int32_t>(slot))];
}

/// The state of tokens [first, last) of one tile, whose pages are those of `blocks`.
State tile(const AttentionArgs& args, const std::int32_t* blocks, std::int64_t kv_head, const Query& query,
           std::int64_t first, std::int64_t last) {
  State state;
  if (first >= last) return state;
  const std::int64_t dim = args.head_dim;
  std::array<Page, exact::kTilePages> pages{};
  for (std::int64_t p = first / kPageTokens; p * kPageTokens < last; ++p) {
    pages[static_cast<std::size_t>(p)] = page_of(args, blocks[p], kv_head);
  }
  const auto page = [&](std::int64_t j) -> const Page& {
    return pages[static_cast<std::size_t>(j / kPageTokens)];
  };

  std::array<std::int32_t, kTileTokens> scores{};
  std::int32_t maximum = std::numeric_limits<std::int32_t>::min();
  for (std::int64_t j = first; j < last; ++j) {
    std::int32_t& s = scores[static_cast<std::size_t>(j)];
    s = score(query, page(j), j % kPageTokens, dim);
    maximum = std::max(maximum, s);
  }
  std::array<std::int32_t, kTileTokens> weights{};
  std::int32_t denominator = 0;
  for (std::int64_t j = first; j < last; ++j) {
    const std::size_t i = static_cast<std::size_t>(j);
    weights[i] = exact::attention_weight(scores[i] - maximum, query.step);
    denominator += weights[i];
  }
  state.reference = static_cast<float>(maximum) * query.unit();
  state.denominator = static_cast<float>(denominator);
  for (std::int64_t d = 0; d < dim; ++d) {
    // 254 · 127 · 128 < 2^22 is exact as a float.
    std::int32_t sum = 0;
    for (std::int64_t j = first; j < last; ++j) {
      sum += weights[static_cast<std::size_t>(j)] * value(page(j), j % kPageTokens, d);
    }
    state.output[static_cast<std::size_t>(d)] = static_cast<float>(sum);
  }
  return state;
}

/// The sink: one token, with scales of its own.
State sink(const AttentionArgs& args, std::int32_t block, std::int64_t kv_head, const Query& query) {
  const Page page = page_of(args, block, kv_head);
  const float* factors = args.scales.sink + 4 * kv_head;
  State state;
  state.reference =
      static_cast<float>(score(query, page, 0, args.head_dim)) * query.unit() * factors[kSinkKeyScale];
  state.denominator = static_cast<float>(exact::kLargestWeight);
  for (std::int64_t d = 0; d < args.head_dim; ++d) {
    state.output[static_cast<std::size_t>(d)] =
        static_cast<float>(exact::kLargestWeight * value(page, 0, d)) * factors[kSinkValueScale];
  }
  return state;
}

/// The state of context tokens [first, last), counted from the context's start: tiles into chunks, chunks
/// into the row.
State context_state(const AttentionArgs& args, const std::int32_t* blocks, std::int64_t kv_head,
                    const Query& query, std::int64_t first, std::int64_t last) {
  State row;
  State chunk;
  const std::int64_t tiles = (last + kTileTokens - 1) / kTileTokens;
  for (std::int64_t t = first / kTileTokens; t < tiles; ++t) {
    const std::int64_t start = t * kTileTokens;
    fold(chunk,
         tile(args, blocks + t * exact::kTilePages, kv_head, query, std::max<std::int64_t>(first - start, 0),
              std::min<std::int64_t>(last - start, kTileTokens)),
         args.head_dim);
    if (t + 1 == tiles || (t + 1) % exact::kChunkTiles == 0) {
      fold(row, chunk, args.head_dim);
      chunk = State{};
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
  out[0] = state.reference;
  out[1] = state.denominator;
  std::copy_n(state.output.begin(), args.head_dim, out + 2);
}

State load(const AttentionArgs& args, std::int64_t token, std::int64_t head, int segment) {
  const float* in = stored_state(args, token, head, segment);
  State state;
  state.reference = in[0];
  state.denominator = in[1];
  std::copy_n(in + 2, args.head_dim, state.output.begin());
  return state;
}

Query query_of(const AttentionArgs& args, std::int64_t token, std::int64_t head) {
  const std::int64_t row = token * args.heads + head;
  return {args.q + row * args.head_dim, args.q_step[row]};
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
    store(args, sink_seen ? sink(args, sequence.blocks[0], kv_head, row) : State{}, token, head, 0);
    State anchors;
    for (std::int64_t start = 0; start < anchors_seen; start += kTileTokens) {
      fold(anchors,
           tile(args, sequence.blocks + 1 + start / kPageTokens, kv_head, row, 0,
                std::min<std::int64_t>(anchors_seen - start, kTileTokens)),
           args.head_dim);
    }
    store(args, anchors, token, head, 1);
  }
}

/// Holds the anchors' share between floor and ceiling, and returns the share given.
/// Both denominators are at least about 254 in their own frames, so no ratio here overflows.
float apply_mass_policy(const AttentionSequence& sequence, State& anchors, const State& context) {
  if (anchors.empty()) return 0.0F;
  if (context.empty()) return 1.0F;
  const float reference = std::max(anchors.reference, context.reference);
  float mine = anchors.denominator * exact::exp2(anchors.reference - reference);
  const float others = context.denominator * exact::exp2(context.reference - reference);
  float odds = -1.0F;
  if (mine < sequence.floor_odds * others) odds = sequence.floor_odds;
  if (mine > sequence.ceiling_odds * others) odds = sequence.ceiling_odds;
  if (odds >= 0.0F) {
    const float wanted = context.denominator * odds;
    const float factor = wanted / anchors.denominator;
    for (float& value : anchors.output) value *= factor;
    anchors.denominator = wanted;
    anchors.reference = context.reference;
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
    fold(state, anchors, args.head_dim);
    fold(state, context, args.head_dim);
    const float inverse = 1.0F / state.denominator;
    const float* v_scale = args.scales.v_scale + item.kv_head * args.head_dim;
    float* out = args.out + (token * args.heads + head) * args.head_dim;
    for (std::int64_t d = 0; d < args.head_dim; ++d) {
      out[d] = state.output[static_cast<std::size_t>(d)] * inverse * v_scale[d];
    }
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
