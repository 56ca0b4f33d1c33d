#pragma once

#include "backend/simd/attention_state.h"

/// How the vectorised attentions go through sequences, tiles and segments. `Tile` is an instruction set's way
/// with one tile (attention_tile.h in its folder): Row, UnpackedTile, set_query, attend, and what
/// attention_state.h wants of an `Isa`.
namespace fieldprint::backend::simd {
namespace {

// Enough rows to pay for unpacking a tile, few enough that their chunks stay in the near caches.
inline constexpr std::int64_t kMaxRows = 64;

inline std::int64_t at_least_zero(std::int64_t x) { return x > 0 ? x : 0; }
inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

inline const std::uint8_t* page_of(const AttentionArgs& args, std::int32_t block, std::int64_t kv_head) {
  return args.kv.pool + block * args.kv.block_stride + args.kv.layer_offset +
         kv_head * page_bytes(args.head_dim);
}

/// Where a row comes from.
struct Origin {
  const AttentionSequence* sequence;
  std::int64_t token;
  std::int64_t position;
  std::int64_t head;
};

/// Rows that go through the pages of one KV head together.
template <class Tile>
struct Block {
  typename Tile::UnpackedTile tile;
  alignas(64) float outputs[2 * kMaxRows * kMaxDim];
  typename Tile::Row rows[kMaxRows];
  Origin origins[kMaxRows];
  std::int64_t count;
};

/// Adds the heads of the group for one query; what they see is still to be set.
template <class Tile>
void add_query(const AttentionArgs& args, const AttentionSequence& sequence, std::int64_t query,
               std::int64_t kv_head, Block<Tile>& block) {
  const std::int64_t dim = args.head_dim;
  const std::int64_t group = args.heads / args.kv_heads;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const std::int64_t token = sequence.first_query + query;
    const std::int64_t index = token * args.heads + head;
    typename Tile::Row& row = block.rows[block.count];
    Tile::set_query(row, args.q + index * dim, dim);
    row.score = score_unit(args.q_step[index]);
    float* outputs = block.outputs + block.count * dim;
    row.chunk.output = outputs;
    row.row.output = outputs + kMaxRows * dim;
    clear(row.chunk);
    clear(row.row);
    block.origins[block.count] = {&sequence, token, sequence.first_position + query, head};
    ++block.count;
  }
}

/// Pages lie anywhere, so the processor cannot guess which one is next. All at once: spread over the
/// products, prefetches hold up their loads.
inline void prefetch(const std::uint8_t* page, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(page + i), _MM_HINT_T1);
  }
}

/// Folds one tile into the chunks of the rows that see any of it.
template <class Tile>
void attend_tile(const AttentionArgs& args, const std::int32_t* blocks, std::int64_t kv_head,
                 std::int64_t start, Block<Tile>& block) {
  typename Tile::Row* active[kMaxRows];
  std::int64_t count = 0;
  std::int64_t first = kTileTokens;
  std::int64_t last = 0;
  for (std::int64_t r = 0; r < block.count; ++r) {
    typename Tile::Row& row = block.rows[r];
    const std::int64_t from = at_least_zero(row.first - start);
    const std::int64_t to = smaller(row.last - start, kTileTokens);
    if (from >= to) continue;
    active[count++] = &row;
    first = smaller(first, from);
    last = to > last ? to : last;
  }
  if (count == 0) return;
  TilePages tile{start, first / kPageTokens, (last + kPageTokens - 1) / kPageTokens, {}};
  for (std::int64_t p = tile.begin; p < tile.end; ++p) tile.pages[p] = page_of(args, blocks[p], kv_head);
  Tile::attend(tile, args.head_dim, active, count, block.tile);
}

inline float* stored_state(const AttentionArgs& args, const Origin& origin, int segment) {
  return args.states +
         ((origin.token * args.heads + origin.head) * 2 + segment) * attention_state_floats(args.head_dim);
}

template <class Tile>
void store(const State& state, std::int64_t dim, float* out) {
  out[0] = state.reference;
  out[1] = state.denominator;
  if (empty(state)) {
    fill_zero<Tile>(out + 2, dim);
  } else {
    copy<Tile>(state.output, out + 2, dim);
  }
}

/// The sink, which every row sees or, past the window, does not.
template <class Tile>
void store_sinks(const AttentionArgs& args, std::int64_t kv_head, const Block<Tile>& block) {
  const Sink sink(page_of(args, block.origins[0].sequence->blocks[0], kv_head),
                  args.scales.sink + 4 * kv_head, args.head_dim);
  for (std::int64_t r = 0; r < block.count; ++r) {
    const Origin& origin = block.origins[r];
    float* out = stored_state(args, origin, 0);
    State state{};
    clear(state);
    if (args.window != 0 && origin.position >= args.window) {
      store<Tile>(state, args.head_dim, out);
      continue;
    }
    out[0] = sink.reference(block.rows[r].q, block.rows[r].score.unit);
    out[1] = static_cast<float>(exact::kLargestWeight);
    copy<Tile>(sink.output(), out + 2, args.head_dim);
  }
}

/// Sink and anchors of the block's rows, whose sequences share them.
template <class Tile>
void run_preface(const AttentionArgs& args, std::int64_t kv_head, Block<Tile>& block) {
  if (block.count == 0) return;
  store_sinks<Tile>(args, kv_head, block);
  const std::int32_t* blocks = nullptr;
  std::int64_t longest = 0;
  for (std::int64_t r = 0; r < block.count; ++r) {
    const Origin& origin = block.origins[r];
    block.rows[r].first = 0;
    block.rows[r].last = smaller(origin.position, origin.sequence->anchor_tokens);
    if (block.rows[r].last <= longest) continue;
    longest = block.rows[r].last;
    blocks = origin.sequence->blocks;
  }
  for (std::int64_t start = 0; start < longest; start += kTileTokens) {
    attend_tile<Tile>(args, blocks + 1 + start / kPageTokens, kv_head, start, block);
  }
  for (std::int64_t r = 0; r < block.count; ++r) {
    store<Tile>(block.rows[r].chunk, args.head_dim, stored_state(args, block.origins[r], 1));
  }
  block.count = 0;
}

template <class Tile>
void fold_chunks(Block<Tile>& block, std::int64_t dim) {
  for (std::int64_t r = 0; r < block.count; ++r) {
    fold<Tile>(block.rows[r].row, block.rows[r].chunk, dim);
    clear(block.rows[r].chunk);
  }
}

/// Holds the anchors' share between floor and ceiling, and returns the share given.
template <class Tile>
float apply_mass_policy(const AttentionSequence& sequence, State& anchors, const State& context,
                        std::int64_t dim) {
  if (empty(anchors)) return 0.0F;
  if (empty(context)) return 1.0F;
  const float reference = anchors.reference < context.reference ? context.reference : anchors.reference;
  const __m128 below = _mm_sub_ps(_mm_set_ps(0.0F, 0.0F, context.reference, anchors.reference),
                                  _mm_set_ps(0.0F, 0.0F, reference, reference));
  const __m128 factors = Tile::exp2_low(below);
  float mine = anchors.denominator * _mm_cvtss_f32(factors);
  const float others = context.denominator * _mm_cvtss_f32(_mm_movehdup_ps(factors));
  float odds = -1.0F;
  if (mine < sequence.floor_odds * others) odds = sequence.floor_odds;
  if (mine > sequence.ceiling_odds * others) odds = sequence.ceiling_odds;
  if (odds >= 0.0F) {
    const float wanted = context.denominator * odds;
    multiply<Tile>(anchors.output, wanted / anchors.denominator, dim);
    anchors.denominator = wanted;
    anchors.reference = context.reference;
    mine = odds * others;
  }
  return mine / (mine + others);
}

/// Folds sink, anchors and context of one row, and writes its output.
template <class Tile>
void finish_row(const AttentionArgs& args, std::int64_t kv_head, const typename Tile::Row& row,
                const Origin& origin) {
  const std::int64_t dim = args.head_dim;
  alignas(64) float outputs[2][kMaxDim];
  State parts[2];
  for (int segment = 0; segment < 2; ++segment) {
    const float* in = stored_state(args, origin, segment);
    parts[segment] = {in[0], in[1], outputs[segment]};
    copy<Tile>(in + 2, outputs[segment], dim);
  }
  State& state = parts[0];
  State& anchors = parts[1];
  const std::int64_t index = origin.token * args.heads + origin.head;
  args.anchor_mass[index] = apply_mass_policy<Tile>(*origin.sequence, anchors, row.row, dim);
  fold<Tile>(state, anchors, dim);
  fold<Tile>(state, row.row, dim);
  const typename Tile::Floats inverse = Tile::broadcast(1.0F / state.denominator);
  const float* v_scale = args.scales.v_scale + kv_head * dim;
  for (std::int64_t d = 0; d < dim; d += Tile::kLanes) {
    const typename Tile::Floats mean = Tile::multiply(Tile::load(state.output + d), inverse);
    Tile::store(args.out + index * dim + d, Tile::multiply(mean, Tile::load(v_scale + d)));
  }
}

/// The context of the block's rows, queries of one sequence in order, and the final fold.
template <class Tile>
void run_context(const AttentionArgs& args, std::int64_t kv_head, Block<Tile>& block) {
  if (block.count == 0) return;
  const std::int64_t dim = args.head_dim;
  const AttentionSequence& sequence = *block.origins[0].sequence;
  const std::int64_t context_start = 1 + sequence.anchor_tokens;
  const std::int64_t anchor_blocks = (sequence.anchor_tokens + kPageTokens - 1) / kPageTokens;
  const std::int32_t* blocks = sequence.blocks + 1 + anchor_blocks;
  for (std::int64_t r = 0; r < block.count; ++r) {
    const std::int64_t seen = block.origins[r].position + 1 - context_start;
    block.rows[r].first = args.window == 0 ? 0 : at_least_zero(seen - args.window);
    block.rows[r].last = at_least_zero(seen);
  }
  // Positions rise, so the first row's window opens first and the last row sees furthest. Folding a row
  // only at boundaries, though it ended before, folds the same states in the same order.
  const std::int64_t last = block.rows[block.count - 1].last;
  const std::int64_t pages = (last + kPageTokens - 1) / kPageTokens;
  const std::int64_t tiles = (last + kTileTokens - 1) / kTileTokens;
  for (std::int64_t t = block.rows[0].first / kTileTokens; t < tiles; ++t) {
    const std::int64_t next = (t + 1) * kTilePages;
    for (std::int64_t p = next; p < smaller(next + kTilePages, pages); ++p) {
      prefetch(page_of(args, blocks[p], kv_head), page_bytes(dim));
    }
    attend_tile<Tile>(args, blocks + t * kTilePages, kv_head, t * kTileTokens, block);
    if (t + 1 == tiles || (t + 1) % exact::kChunkTiles == 0) fold_chunks<Tile>(block, dim);
  }
  for (std::int64_t r = 0; r < block.count; ++r) {
    finish_row<Tile>(args, kv_head, block.rows[r], block.origins[r]);
  }
  block.count = 0;
}

template <class Tile>
void attention_preface(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t group = args.heads / args.kv_heads;
  Block<Tile> block;
  block.count = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const PrefaceItem& item = args.preface_items[i];
    std::int64_t counted = 0;
    for (std::int64_t s = 0; s < item.sequences; ++s) {
      const AttentionSequence& sequence = args.sequences[item.first_sequence + s];
      const std::int64_t last = smaller(item.query_end - counted, sequence.queries);
      for (std::int64_t query = at_least_zero(item.query_begin - counted); query < last; ++query) {
        if (block.count + group > kMaxRows) run_preface<Tile>(args, item.kv_head, block);
        add_query<Tile>(args, sequence, query, item.kv_head, block);
      }
      counted += sequence.queries;
    }
    run_preface<Tile>(args, item.kv_head, block);
  }
}

template <class Tile>
void attention_context(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t group = args.heads / args.kv_heads;
  Block<Tile> block;
  block.count = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const ContextItem& item = args.context_items[i];
    for (std::int64_t query = item.query_begin; query < item.query_end; ++query) {
      if (block.count + group > kMaxRows) run_context<Tile>(args, item.kv_head, block);
      add_query<Tile>(args, args.sequences[item.sequence], query, item.kv_head, block);
    }
    run_context<Tile>(args, item.kv_head, block);
  }
}

}  // namespace
}  // namespace fieldprint::backend::simd
