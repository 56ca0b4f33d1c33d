#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "exact/arith.h"
#include "kv/block_table.h"

/// For tests: stands in for a model. What it writes for a token depends on the tokens before it and, in the
/// context, on the anchors' floor and ceiling, as real states do; so shared blocks are right only if sharing
/// is.
namespace fieldprint::kv::testing {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t z = (a ^ (b + 0x9E3779B97F4A7C15U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

/// State of every position of a sequence.
inline std::vector<std::uint64_t> states(core::BlockLayout layout, AnchorOdds odds,
                                         std::span<const std::int32_t> tokens) {
  std::vector<std::uint64_t> states;
  std::uint64_t state = 1;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto position = static_cast<std::int64_t>(i);
    const core::Segment segment = layout.segment_of_block(layout.place(position).block);
    state = mix(mix(state, static_cast<std::uint32_t>(tokens[i])), static_cast<std::uint64_t>(segment));
    if (segment == core::Segment::kContext && layout.anchor_tokens > 0) {
      state = mix(state, std::bit_cast<std::uint32_t>(odds.floor));
      state = mix(state, std::bit_cast<std::uint32_t>(odds.ceiling));
    }
    states.push_back(state);
  }
  return states;
}

/// Writes one token's keys and values into slot `slot` of the block at `data`. No byte is zero.
inline void write_slot(const KvGeometry& geometry, std::uint8_t* data, std::int32_t slot,
                       std::uint64_t state) {
  for (std::int64_t page = 0; page < geometry.pages_per_block(); ++page) {
    std::uint8_t* keys = data + page * geometry.page_bytes();
    std::uint8_t* values = keys + 64 * geometry.head_dim;
    std::uint64_t random = mix(state, static_cast<std::uint64_t>(page));
    const auto next = [&random] {
      random = mix(random, 3);
      return static_cast<std::uint8_t>(random | 1U);
    };
    for (std::int64_t d = 0; d < geometry.head_dim; ++d) {
      keys[slot * geometry.head_dim + d] = next();
      values[d * 64 + exact::value_slot(slot)] = next();
    }
  }
}

/// Writes the tokens from position `from` on, as a step's kernels would.
inline void run_kernels(BlockPool& pool, const BlockTable& table, std::int64_t from) {
  const std::vector<std::uint64_t> all = states(table.layout(), table.odds(), table.tokens());
  for (std::int64_t position = from; position < table.size(); ++position) {
    const BlockTable::Slot slot = table.slot(position);
    write_slot(pool.geometry(), pool.data(slot.block), slot.slot, all[static_cast<std::size_t>(position)]);
  }
}

/// The bytes that the block table's block `index` must hold, from nothing but its tokens.
inline std::vector<std::uint8_t> expected_bytes(const KvGeometry& geometry, const BlockTable& table,
                                                std::int64_t index) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(geometry.block_bytes()), 0);
  const std::vector<std::uint64_t> all = states(table.layout(), table.odds(), table.tokens());
  const std::int64_t end = std::min(table.size(), table.layout().block_end(index));
  for (std::int64_t position = table.layout().block_begin(index); position < end; ++position) {
    write_slot(geometry, bytes.data(), table.layout().place(position).slot,
               all[static_cast<std::size_t>(position)]);
  }
  return bytes;
}

inline bool holds_expected_bytes(const BlockPool& pool, const BlockTable& table, std::int64_t index) {
  const std::vector<std::uint8_t> expected = expected_bytes(pool.geometry(), table, index);
  return std::memcmp(expected.data(), pool.data(table.blocks()[static_cast<std::size_t>(index)]),
                     expected.size()) == 0;
}

}  // namespace fieldprint::kv::testing
