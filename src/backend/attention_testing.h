#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "backend/attention_plan.h"
#include "backend/kernel_testing.h"
#include "backend/ops.h"
#include "exact/arith.h"
#include "exact/format.h"

/// Paged histories for the tests and benchmarks of attention. What a token holds depends on the seed, its
/// owner and its position alone, never on the block it lies in.
namespace fieldprint::backend::testing {

struct HeadShape {
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
};

struct SequenceSpec {
  std::uint64_t owner;       ///< of the context
  std::uint64_t anchor_set;  ///< owner of sink and anchors; neighbours with the same set share their blocks
  std::int32_t anchor_tokens;
  std::int32_t first_position;
  std::int32_t queries;
  float floor_odds = 0.0F;
  float ceiling_odds = std::numeric_limits<float>::infinity();
};

inline std::int32_t below(std::mt19937_64& random, std::int32_t limit) {
  return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(limit));
}

inline HeadShape random_shape(std::mt19937_64& random) {
  constexpr std::int32_t kDims[] = {16, 32, 48, 64, 80, 96, 112, 128, 256};
  constexpr std::int32_t kGroups[] = {1, 2, 3, 4, 5, 7, 8, 9, 16};
  const std::int32_t kv_heads = 1 + below(random, 3);
  return {kv_heads * kGroups[below(random, 9)], kv_heads, kDims[below(random, 9)]};
}

inline std::vector<SequenceSpec> random_sequences(std::mt19937_64& random, bool prefill) {
  constexpr std::int32_t kAnchors[] = {0, 1, 64, 65, 128, 129, 200, 1024};
  std::vector<SequenceSpec> specs;
  const std::int32_t count = 1 + below(random, 4);
  for (std::int32_t s = 0; s < count; ++s) {
    SequenceSpec spec{};
    spec.owner = 10 + static_cast<std::uint64_t>(s);
    if (s > 0 && below(random, 3) > 0) {
      spec.anchor_set = specs.back().anchor_set;
      spec.anchor_tokens = specs.back().anchor_tokens;
    } else {
      spec.anchor_set = 100 + static_cast<std::uint64_t>(s);
      spec.anchor_tokens = kAnchors[below(random, 7 + (below(random, 8) == 0 ? 1 : 0))];
    }
    const std::int32_t start[] = {0, below(random, 1 + spec.anchor_tokens), 1 + spec.anchor_tokens,
                                  spec.anchor_tokens + below(random, 700)};
    spec.first_position = start[below(random, 4)];
    spec.queries = prefill && below(random, 2) == 0 ? 1 + below(random, 90) : 1 + below(random, 2);
    constexpr float kOdds[] = {0.0F, 0.01F, 1.0F, 9.0F};
    spec.floor_odds = kOdds[below(random, 4)];
    if (below(random, 2) == 0) spec.ceiling_odds = spec.floor_odds + kOdds[below(random, 4)];
    specs.push_back(spec);
  }
  return specs;
}

/// What the values of a history look like.
enum class TokenKind { kOrdinary, kExtreme, kSmallKeys, kZeroValues, kZero };

class PagedAttention {
 public:
  PagedAttention(const HeadShape& shape, std::int32_t window, std::vector<SequenceSpec> specs,
                 std::uint64_t seed, std::uint64_t placement_seed, bool vary_kinds = true)
      : shape_(shape), window_(window), specs_(std::move(specs)), seed_(seed), vary_kinds_(vary_kinds) {
    layer_bytes_ = page_bytes(shape.head_dim) * shape.kv_heads;
    block_stride_ = layer_bytes_ + 128;
    number_blocks(placement_seed);
    const std::int64_t pool_bytes = (blocks_ - 1) * block_stride_ + kLayerOffset + layer_bytes_;
    pool_.resize(static_cast<std::size_t>(pool_bytes) / sizeof(CacheLine));
    for (std::size_t s = 0; s < specs_.size(); ++s) write_tokens(s);
    make_queries();
    make_scales();
    const std::size_t rows = q_step_.size();
    states_.resize(rows * 2 * static_cast<std::size_t>(attention_state_floats(shape.head_dim)));
    out_.resize(rows * static_cast<std::size_t>(shape.head_dim));
    anchor_mass_.resize(rows);
    plan_ = plan_attention(sequences_, shape.heads, shape.kv_heads);
  }
  PagedAttention(const PagedAttention&) = delete;
  PagedAttention& operator=(const PagedAttention&) = delete;

  AttentionArgs args() {
    return {.heads = shape_.heads,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim,
            .window = window_,
            .q = q_.data(),
            .q_step = q_step_.data(),
            .scales = {.k_offset = nullptr,
                       .k_inverse = nullptr,
                       .q_factor = nullptr,
                       .v_inverse = nullptr,
                       .v_scale = v_scale_.data(),
                       .sink = sink_.data()},
            .kv = {pool_.front().bytes, block_stride_, kLayerOffset},
            .sequences = sequences_.data(),
            .preface_items = plan_.preface.data(),
            .context_items = plan_.context.data(),
            .states = states_.data(),
            .out = out_.data(),
            .anchor_mass = anchor_mass_.data()};
  }

  /// Runs both passes; results are then in states(), out(), anchor_mass().
  template <typename Preface, typename Context>
  void run(Preface preface, Context context) {
    const AttentionArgs a = args();
    preface(a, 0, static_cast<std::int64_t>(plan_.preface.size()));
    context(a, 0, static_cast<std::int64_t>(plan_.context.size()));
  }

  /// Replaces the plan by one whose items hold at most `queries` queries.
  void cut(std::int32_t queries) {
    AttentionPlan cut;
    for (const PrefaceItem& item : plan_.preface) {
      for (std::int32_t q = item.query_begin; q < item.query_end; q += queries) {
        PrefaceItem part = item;
        part.query_begin = q;
        part.query_end = std::min(q + queries, item.query_end);
        cut.preface.push_back(part);
      }
    }
    for (const ContextItem& item : plan_.context) {
      for (std::int32_t q = item.query_begin; q < item.query_end; q += queries) {
        ContextItem part = item;
        part.query_begin = q;
        part.query_end = std::min(q + queries, item.query_end);
        cut.context.push_back(part);
      }
    }
    plan_ = std::move(cut);
  }

  /// Fills what lies past the last query's position in its pages, which no query may see.
  void write_future() {
    for (std::size_t s = 0; s < specs_.size(); ++s) {
      const std::int64_t end = specs_[s].first_position + specs_[s].queries;
      const std::int64_t start = 1 + specs_[s].anchor_tokens;
      if (end <= start) continue;
      const std::int64_t full = (end - start + exact::kPageTokens - 1) / exact::kPageTokens;
      for (std::int64_t p = end; p < start + full * exact::kPageTokens; ++p) write_token(s, p);
    }
  }

  /// Replaces what one token holds, in every KV head.
  void set_token(std::size_t s, std::int64_t position, const std::vector<std::int8_t>& key,
                 const std::vector<std::int8_t>& value) {
    for (std::int64_t h = 0; h < shape_.kv_heads; ++h) {
      std::int64_t slot = 0;
      std::uint8_t* page = locate(s, position, h, &slot);
      const std::int64_t dim = shape_.head_dim;
      const std::int64_t column = exact::value_slot(static_cast<std::int32_t>(slot));
      for (std::int64_t d = 0; d < dim; ++d) {
        const std::size_t i = static_cast<std::size_t>(d);
        page[slot * dim + d] = static_cast<std::uint8_t>(key[i]);
        page[(dim + d) * exact::kPageTokens + column] = static_cast<std::uint8_t>(value[i]);
      }
    }
  }

  /// Replaces every query row.
  void set_queries(const std::vector<std::int8_t>& q, std::int32_t step) {
    for (std::size_t i = 0; i < q_.size(); ++i) q_[i] = q[i % q.size()];
    std::fill(q_step_.begin(), q_step_.end(), step);
  }

  const std::vector<float>& states() const { return states_; }
  const std::vector<float>& out() const { return out_; }
  const std::vector<float>& anchor_mass() const { return anchor_mass_; }
  const std::vector<SequenceSpec>& specs() const { return specs_; }
  const AttentionSequence& sequence(std::size_t s) const { return sequences_[s]; }
  const AttentionPlan& plan() const { return plan_; }

  /// The bytes of one head's page of the block that holds `position`, and the slot in it.
  const std::uint8_t* page(std::size_t s, std::int64_t position, std::int64_t kv_head, std::int64_t* slot) {
    return locate(s, position, kv_head, slot);
  }

 private:
  static constexpr std::int64_t kLayerOffset = 64;

  void number_blocks(std::uint64_t placement_seed) {
    std::vector<std::int64_t> counts;
    for (std::size_t s = 0; s < specs_.size(); ++s) {
      const SequenceSpec& spec = specs_[s];
      const std::int64_t preface = 1 + (spec.anchor_tokens + exact::kPageTokens - 1) / exact::kPageTokens;
      const std::int64_t context = std::max(spec.first_position + spec.queries - 1 - spec.anchor_tokens, 0);
      tables_.emplace_back();
      if (s > 0 && specs_[s - 1].anchor_set == spec.anchor_set) {
        tables_[s].assign(tables_[s - 1].begin(), tables_[s - 1].begin() + preface);
      } else {
        for (std::int64_t b = 0; b < preface; ++b) tables_[s].push_back(blocks_++);
      }
      const std::int64_t pages = (context + exact::kPageTokens - 1) / exact::kPageTokens;
      for (std::int64_t b = 0; b < pages; ++b) tables_[s].push_back(blocks_++);
    }
    std::vector<std::int32_t> place(static_cast<std::size_t>(blocks_));
    for (std::int32_t b = 0; b < blocks_; ++b) place[static_cast<std::size_t>(b)] = b;
    std::mt19937_64 random(placement_seed);
    for (std::size_t b = place.size() - 1; b > 0; --b) std::swap(place[b], place[random() % (b + 1)]);
    std::int32_t first = 0;
    for (std::size_t s = 0; s < specs_.size(); ++s) {
      for (std::int32_t& block : tables_[s]) block = place[static_cast<std::size_t>(block)];
      const SequenceSpec& spec = specs_[s];
      sequences_.push_back({first, spec.queries, spec.first_position, spec.anchor_tokens, tables_[s].data(),
                            spec.floor_odds, spec.ceiling_odds});
      first += spec.queries;
    }
  }

  std::uint8_t* locate(std::size_t s, std::int64_t position, std::int64_t kv_head, std::int64_t* slot) {
    const std::int64_t anchors = specs_[s].anchor_tokens;
    std::int64_t block = 0;
    *slot = 0;
    if (position > anchors) {
      block = 1 + (anchors + exact::kPageTokens - 1) / exact::kPageTokens +
              (position - 1 - anchors) / exact::kPageTokens;
      *slot = (position - 1 - anchors) % exact::kPageTokens;
    } else if (position > 0) {
      block = 1 + (position - 1) / exact::kPageTokens;
      *slot = (position - 1) % exact::kPageTokens;
    }
    return pool_.front().bytes + tables_[s][static_cast<std::size_t>(block)] * block_stride_ + kLayerOffset +
           kv_head * page_bytes(shape_.head_dim);
  }

  /// splitmix64 (Steele, Lea, Flood 2014), which costs nothing to start.
  struct Source {
    std::uint64_t state;
    std::uint64_t operator()() {
      state += 0x9E3779B97F4A7C15U;
      std::uint64_t z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9U;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
      return z ^ (z >> 31);
    }
  };

  /// Random numbers of one token: equal wherever and whenever they are drawn.
  Source source(std::uint64_t owner, std::int64_t position, std::int64_t purpose) const {
    Source mix{seed_};
    mix.state = mix() ^ owner;
    mix.state = mix() ^ static_cast<std::uint64_t>(position);
    mix.state = mix() ^ static_cast<std::uint64_t>(purpose);
    return {mix()};
  }

  TokenKind kind_of(std::uint64_t owner, std::int64_t position) const {
    if (!vary_kinds_) return TokenKind::kOrdinary;
    // A kind a page, so that whole tiles are zero.
    const std::uint64_t draw = source(owner, position / exact::kPageTokens, -1)() % 10;
    return draw < 5 ? static_cast<TokenKind>(draw) : TokenKind::kOrdinary;
  }

  static std::int8_t draw_byte(Source& random, TokenKind kind) {
    if (kind == TokenKind::kExtreme) return random() % 2 == 0 ? std::int8_t{127} : std::int8_t{-127};
    const auto level = static_cast<std::int64_t>(random() % 255) - 127;
    return static_cast<std::int8_t>(kind == TokenKind::kSmallKeys ? level / 32 : level);
  }

  void write_token(std::size_t s, std::int64_t position) {
    const SequenceSpec& spec = specs_[s];
    const std::uint64_t owner = position <= spec.anchor_tokens ? spec.anchor_set : spec.owner;
    const TokenKind kind = kind_of(owner, position);
    if (kind == TokenKind::kZero) return;
    const std::int64_t dim = shape_.head_dim;
    for (std::int64_t h = 0; h < shape_.kv_heads; ++h) {
      Source random = source(owner, position, h);
      std::int64_t slot = 0;
      std::uint8_t* page = locate(s, position, h, &slot);
      std::uint8_t* values = page + exact::kPageTokens * dim;
      for (std::int64_t d = 0; d < dim; ++d) {
        page[slot * dim + d] = static_cast<std::uint8_t>(draw_byte(random, kind));
      }
      if (kind == TokenKind::kZeroValues) continue;
      const std::int64_t column = exact::value_slot(static_cast<std::int32_t>(slot));
      const TokenKind value_kind = kind == TokenKind::kSmallKeys ? TokenKind::kOrdinary : kind;
      for (std::int64_t d = 0; d < dim; ++d) {
        values[d * exact::kPageTokens + column] = static_cast<std::uint8_t>(draw_byte(random, value_kind));
      }
    }
  }

  void write_tokens(std::size_t s) {
    const SequenceSpec& spec = specs_[s];
    for (std::int64_t p = 0; p < spec.first_position + spec.queries; ++p) write_token(s, p);
    // Anchor pages are complete before any query looks at them.
    for (std::int64_t p = 1; p <= spec.anchor_tokens; ++p) write_token(s, p);
  }

  void make_queries() {
    for (const SequenceSpec& spec : specs_) {
      for (std::int64_t p = spec.first_position; p < spec.first_position + spec.queries; ++p) {
        for (std::int64_t h = 0; h < shape_.heads; ++h) {
          Source random = source(spec.owner, p, 1000 + h);
          for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
            q_.push_back(draw_byte(random, TokenKind::kOrdinary));
          }
          q_step_.push_back(draw_step(random));
        }
      }
    }
    q_.shrink_to_fit();
  }

  /// From flat attention to maxima that rise by far more than a fold's headroom.
  std::int32_t draw_step(Source& random) const {
    if (!vary_kinds_) return 300;
    const std::uint64_t draw = random() % 16;
    if (draw == 0) return exact::kSmallestStep;
    if (draw == 1) return exact::kLargestStep;
    return (16 << (draw % 12)) + static_cast<std::int32_t>(random() % 16);
  }

  void make_scales() {
    Source random = source(0, -1, 2000);
    const auto unit = [&random] { return 0.5F + static_cast<float>(random() % 1024) / 1024.0F; };
    for (std::int32_t i = 0; i < shape_.kv_heads * shape_.head_dim; ++i) v_scale_.push_back(0.01F * unit());
    for (std::int32_t h = 0; h < shape_.kv_heads; ++h) {
      const float key = 3.0F * unit();
      const float value = 0.25F * unit();
      sink_.insert(sink_.end(), {1.0F / key, key, 1.0F / value, value});
    }
  }

  HeadShape shape_;
  std::int32_t window_;
  std::vector<SequenceSpec> specs_;
  std::uint64_t seed_;
  bool vary_kinds_;
  std::int64_t layer_bytes_ = 0;
  std::int64_t block_stride_ = 0;
  std::int32_t blocks_ = 0;
  std::vector<CacheLine> pool_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<AttentionSequence> sequences_;
  std::vector<std::int8_t> q_;
  std::vector<std::int32_t> q_step_;
  std::vector<float> v_scale_;
  std::vector<float> sink_;
  std::vector<float> states_;
  std::vector<float> out_;
  std::vector<float> anchor_mass_;
  AttentionPlan plan_;
};

}  // namespace fieldprint::backend::testing
