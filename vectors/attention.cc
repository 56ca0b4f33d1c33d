#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "core/block_layout.h"
#include "exact/arith.h"
#include "vectors/device.h"
#include "vectors/golden.h"
#include "vectors/source.h"

/// Grouped-query attention over paged histories.
namespace fieldprint::vectors {
namespace {

using backend::AttentionSequence;
using backend::Backend;

constexpr float kNone = std::numeric_limits<float>::infinity();

struct SequenceSpec {
  std::uint64_t owner;    ///< of the context
  std::uint64_t anchors;  ///< owner of sink and anchors; neighbours with the same one share their blocks
  std::int32_t anchor_tokens;
  std::int32_t first_position;
  std::int32_t queries;
  float floor_odds = 0.0F;
  float ceiling_odds = kNone;
};

/// What the pages of a history hold, one kind a page.
enum class PageKind { kOrdinary, kExtreme, kSmallKeys, kZeroValues, kZero, kRising };
/// Kinds of a case's pages: all the same, or drawn for each page from those before kRising.
enum class Pages { kPlain, kMixed, kRising };

struct Case {
  const char* name;
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int32_t window;
  std::vector<SequenceSpec> sequences;
  Pages pages = Pages::kMixed;
};

/// Blocks, pool and queries of a case. A token's bytes follow from its owner and position alone.
class History {
 public:
  explicit History(const Case& c) : case_(c) {
    for (std::size_t s = 0; s < c.sequences.size(); ++s) number_blocks(s);
    // Physical order is the reverse of the logical one.
    for (auto& table : tables_) {
      for (std::int32_t& block : table) block = blocks_ - 1 - block;
    }
    pool_.resize(static_cast<std::size_t>(blocks_ * block_bytes()));
    std::int32_t first_query = 0;
    for (std::size_t s = 0; s < c.sequences.size(); ++s) {
      const SequenceSpec& spec = c.sequences[s];
      const std::int64_t tokens = std::max(spec.first_position + spec.queries, 1 + spec.anchor_tokens);
      for (std::int64_t p = 0; p < tokens; ++p) write_token(s, p);
      sequences_.push_back({first_query, spec.queries, spec.first_position, spec.anchor_tokens,
                            tables_[s].data(), spec.floor_odds, spec.ceiling_odds});
      first_query += spec.queries;
      write_queries(spec);
    }
  }
  History(const History&) = delete;
  History& operator=(const History&) = delete;

  std::int64_t block_bytes() const { return case_.kv_heads * backend::page_bytes(case_.head_dim); }
  const std::vector<std::uint8_t>& pool() const { return pool_; }
  const std::vector<AttentionSequence>& sequences() const { return sequences_; }
  const std::vector<std::int8_t>& q() const { return q_; }
  const std::vector<std::int32_t>& q_step() const { return q_step_; }

 private:
  static constexpr std::uint64_t kSeed = 30;

  void number_blocks(std::size_t s) {
    const SequenceSpec& spec = case_.sequences[s];
    const core::BlockLayout layout{spec.anchor_tokens};
    const std::int64_t tokens =
        std::max<std::int64_t>(spec.first_position + spec.queries, layout.preface_tokens());
    tables_.emplace_back();
    if (s > 0 && case_.sequences[s - 1].anchors == spec.anchors) {
      const auto& before = tables_[s - 1];
      tables_[s].assign(before.begin(), before.begin() + layout.preface_blocks());
    }
    while (static_cast<std::int64_t>(tables_[s].size()) < layout.blocks_for(tokens)) {
      tables_[s].push_back(blocks_++);
    }
  }

  PageKind kind_of(std::uint64_t owner, std::int64_t position) const {
    if (case_.pages == Pages::kPlain) return PageKind::kOrdinary;
    if (case_.pages == Pages::kRising) return PageKind::kRising;
    return static_cast<PageKind>(Source(kSeed, owner, static_cast<std::uint64_t>(position / 64)).below(5));
  }

  static std::int8_t draw_value(Source& source, PageKind kind) {
    const std::int8_t extreme = source.below(2) == 0 ? std::int8_t{127} : std::int8_t{-127};
    const std::int8_t any = source.digit();
    if (kind == PageKind::kZeroValues) return 0;
    return kind == PageKind::kExtreme ? extreme : any;
  }

  /// Rising keys are the same in all channels and grow with the position: scores rise or fall from tile to
  /// tile, as the query's sum has it.
  static std::int8_t draw_key(Source& source, PageKind kind, std::int64_t position) {
    const std::int8_t extreme = source.below(2) == 0 ? std::int8_t{127} : std::int8_t{-127};
    const std::int8_t any = source.digit();
    if (kind == PageKind::kExtreme) return extreme;
    if (kind == PageKind::kSmallKeys) return static_cast<std::int8_t>(any / 32);
    if (kind == PageKind::kRising)
      return static_cast<std::int8_t>(std::min<std::int64_t>(position / 32, 120) + any / 64);
    return any;
  }

  void write_token(std::size_t s, std::int64_t position) {
    const SequenceSpec& spec = case_.sequences[s];
    const std::uint64_t owner = position <= spec.anchor_tokens ? spec.anchors : spec.owner;
    const PageKind kind = kind_of(owner, position);
    if (kind == PageKind::kZero) return;
    const core::TokenPlace place = core::BlockLayout{spec.anchor_tokens}.place(position);
    const std::int32_t block = tables_[s][static_cast<std::size_t>(place.block)];
    const std::int64_t dim = case_.head_dim;
    for (std::int64_t h = 0; h < case_.kv_heads; ++h) {
      Source source(kSeed + 1, owner, static_cast<std::uint64_t>(position * 64 + h));
      std::uint8_t* keys = pool_.data() + block * block_bytes() + h * backend::page_bytes(dim);
      std::uint8_t* values = keys + 64 * dim;
      const std::int64_t column = exact::value_slot(place.slot);
      for (std::int64_t d = 0; d < dim; ++d) {
        keys[place.slot * dim + d] = static_cast<std::uint8_t>(draw_key(source, kind, position));
      }
      for (std::int64_t d = 0; d < dim; ++d) {
        values[d * 64 + column] = static_cast<std::uint8_t>(draw_value(source, kind));
      }
    }
  }

  /// Steps at both ends, and between them from flat to maxima that exceed the headroom.
  static std::int32_t draw_step(Source& source) {
    const std::uint64_t choice = source.below(10);
    const std::int64_t power = source.between(5, 15);
    const std::int64_t rest = source.between(0, 31);
    if (choice == 0) return exact::kSmallestStep;
    if (choice == 1) return exact::kLargestStep;
    return static_cast<std::int32_t>((std::int64_t{1} << power) + rest);
  }

  void write_queries(const SequenceSpec& spec) {
    for (std::int32_t i = 0; i < spec.queries; ++i) {
      for (std::int32_t h = 0; h < case_.heads; ++h) {
        Source source(kSeed + 2, spec.owner, static_cast<std::uint64_t>((spec.first_position + i) * 256 + h));
        for (std::int32_t d = 0; d < case_.head_dim; ++d) q_.push_back(source.digit());
        q_step_.push_back(draw_step(source));
      }
    }
  }

  const Case& case_;
  std::int32_t blocks_ = 0;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::uint8_t> pool_;
  std::vector<AttentionSequence> sequences_;
  std::vector<std::int8_t> q_;
  std::vector<std::int32_t> q_step_;
};

constexpr const char* kPagesText[] = {", ordinary pages", "", ", rising keys"};

std::string describe(const Case& c) {
  std::string text = fmt::format("seed 30, heads {}, KV heads {}, head size {}, window {}{};", c.heads,
                                 c.kv_heads, c.head_dim, c.window, kPagesText[static_cast<int>(c.pages)]);
  for (const SequenceSpec& s : c.sequences) {
    text += fmt::format(" [owner {}, anchors {} of {}, queries {}..{}, odds {}..{}]", s.owner,
                        s.anchor_tokens, s.anchors, s.first_position, s.first_position + s.queries - 1,
                        s.floor_odds, s.ceiling_odds);
  }
  return text;
}

void record_case(Backend& backend, Recorder& out, const Case& c) {
  const History history(c);
  const Device<std::uint8_t> pool(backend, history.pool());
  const Device<std::int8_t> q(backend, history.q());
  const Device<std::int32_t> q_step(backend, history.q_step());
  const std::size_t rows = history.q_step().size();
  Source source(33);
  std::vector<float> scales = floats(c.kv_heads * c.head_dim, 0.01F, source);
  for (float& scale : scales) scale += 0.02F;
  const Device<float> v_scale(backend, scales);
  std::vector<float> factors;
  for (std::int32_t h = 0; h < c.kv_heads; ++h) {
    const float key = 3.0F + source.unit();
    const float value = 0.5F + 0.25F * source.unit();
    factors.insert(factors.end(), {1.0F / key, key, 1.0F / value, value});
  }
  const Device<float> sink(backend, factors);
  const std::size_t dim = static_cast<std::size_t>(c.head_dim);
  const Device<float> states(
      backend, rows * 2 * static_cast<std::size_t>(backend::attention_state_floats(c.head_dim)));
  const Device<float> result(backend, rows * dim);
  const Device<float> mass(backend, rows);
  backend.plan_attention(history.sequences(), c.heads, c.kv_heads);
  backend.attention({.heads = c.heads,
                     .kv_heads = c.kv_heads,
                     .head_dim = c.head_dim,
                     .window = c.window,
                     .q = q.data(),
                     .q_step = q_step.data(),
                     .scales = {.k_offset = nullptr,
                                .k_inverse = nullptr,
                                .q_factor = nullptr,
                                .v_inverse = nullptr,
                                .v_scale = v_scale.data(),
                                .sink = sink.data()},
                     .kv = {pool.data(), history.block_bytes(), 0},
                     .sequences = nullptr,
                     .preface_items = nullptr,
                     .context_items = nullptr,
                     .states = states.data(),
                     .out = result.data(),
                     .anchor_mass = mass.data()});
  out.inputs(describe(c));
  out.add(fmt::format("attention/{}/out", c.name), result.host());
  out.add(fmt::format("attention/{}/anchor_mass", c.name), mass.host());
}

}  // namespace

void record_attention(Backend& backend, Recorder& out) {
  constexpr Pages kPlain = Pages::kPlain;
  constexpr Pages kRising = Pages::kRising;
  const std::vector<Case> cases = {
      {"one_token", 2, 1, 64, 0, {{1, 100, 0, 0, 1}}, kPlain},
      {"prefill", 4, 2, 64, 0, {{1, 100, 0, 0, 140}}, kPlain},
      {"prefill.kinds", 4, 2, 80, 0, {{2, 101, 0, 0, 270}}},
      {"anchors", 4, 2, 64, 0, {{1, 102, 70, 0, 150}}, kPlain},
      {"anchors.kinds", 6, 2, 96, 0, {{3, 103, 129, 0, 40}, {4, 103, 129, 130, 70}}},
      {"shared_preface", 8, 2, 64, 0, {{1, 104, 64, 300, 3}, {2, 104, 64, 65, 2}, {3, 105, 1, 200, 1}}},
      {"page_edges", 2, 1, 64, 0, {{1, 106, 63, 63 + 62, 4}, {2, 106, 63, 63 + 190, 4}}, kPlain},
      {"tile_edges", 2, 1, 64, 0, {{1, 106, 63, 63 + 126, 4}, {2, 106, 63, 63 + 254, 4}}, kPlain},
      {"chunk_edges", 2, 1, 64, 0, {{1, 106, 63, 63 + 510, 4}, {2, 106, 63, 63 + 1022, 4}}, kPlain},
      {"long", 2, 1, 128, 0, {{1, 107, 0, 2046, 5}, {2, 108, 3, 4 + 2046, 4}}, kPlain},
      {"long.kinds", 3, 1, 64, 0, {{5, 109, 0, 4200, 2}}},
      {"rising", 8, 1, 64, 0, {{6, 121, 0, 2100, 4}}, kRising},
      {"rising.anchors", 8, 2, 64, 0, {{6, 122, 700, 640, 80}}, kRising},
      {"window", 4, 2, 64, 100, {{1, 110, 0, 0, 250}}, kPlain},
      {"window.anchors", 4, 2, 64, 100, {{1, 111, 130, 60, 200}}, kPlain},
      {"window.chunks", 2, 1, 64, 600, {{1, 112, 10, 2300, 3}}},
      {"window.one", 2, 1, 64, 1, {{1, 113, 5, 0, 70}}, kPlain},
      {"floor", 4, 2, 64, 0, {{1, 114, 40, 20, 200, 1.0F, kNone}}, kPlain},
      {"ceiling", 4, 2, 64, 0, {{1, 115, 200, 180, 60, 0.0F, 0.25F}}, kPlain},
      {"floor_and_ceiling", 4, 2, 64, 0, {{1, 116, 100, 90, 300, 0.25F, 0.5F}}},
      {"ceiling_zero", 2, 1, 64, 0, {{1, 117, 30, 25, 20, 0.0F, 0.0F}}, kPlain},
      {"many_heads", 16, 1, 64, 0, {{1, 118, 20, 500, 2}}},
      {"head_256", 4, 1, 256, 0, {{1, 119, 70, 600, 3}}},
      {"head_16", 2, 2, 16, 0, {{1, 120, 10, 0, 90}}}};
  for (const Case& c : cases) record_case(backend, out, c);
}

}  // namespace fieldprint::vectors
