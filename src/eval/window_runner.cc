#include "eval/window_runner.h"

#include <cstring>
#include <limits>
#include <numeric>

#include "core/block_layout.h"
#include "exact/arith.h"

namespace fieldprint::eval {
namespace {

std::vector<std::int32_t> first_blocks(std::int64_t count) {
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(count));
  std::iota(blocks.begin(), blocks.end(), 0);
  return blocks;
}

}  // namespace

Error overflow_error() {
  return caller_error("the model overflows on plain text; its weights do not suit its architecture");
}

WindowRunner::WindowRunner(const weights::ModelFile& file, backend::Backend& backend, std::int32_t tokens)
    : spec_(file.spec()),
      model_(file, backend, tokens),
      block_bytes_(std::int64_t{spec_.layers} * spec_.kv_heads * backend::page_bytes(spec_.head_dim)),
      table_(first_blocks(core::BlockLayout{}.blocks_for(tokens))),
      pages_(backend, block_bytes_ * static_cast<std::int64_t>(table_.size())) {}

Status WindowRunner::forward(std::span<const std::int32_t> tokens, std::int32_t logits) {
  model_.backend().clear(pages_.data(), pages_.bytes());
  const model::SequenceSlice slice{.tokens = tokens,
                                   .first_position = 0,
                                   .anchor_tokens = 0,
                                   .blocks = table_.data(),
                                   .floor_odds = 0,
                                   .ceiling_odds = std::numeric_limits<float>::infinity(),
                                   .logits = logits};
  if (model_.forward({&slice, 1}, {pages_.data(), block_bytes_})[0]) return {};
  return overflow_error();
}

std::vector<double> WindowRunner::key(std::int32_t layer, std::int32_t head, std::int32_t position) const {
  const core::TokenPlace place = core::BlockLayout{}.place(position);
  const std::int64_t dim = spec_.head_dim;
  const std::int64_t page =
      place.block * block_bytes_ + (std::int64_t{layer} * spec_.kv_heads + head) * backend::page_bytes(dim);
  std::vector<std::uint8_t> staging;
  const auto* bytes = static_cast<const std::uint8_t*>(
      model_.backend().host_view(pages_.data() + page, backend::page_bytes(dim), staging));
  std::uint16_t scale = 0;
  std::memcpy(&scale, bytes + 2 * exact::kPageTokens * dim + 2 * place.slot, 2);
  std::vector<double> key(static_cast<std::size_t>(dim));
  for (std::size_t i = 0; i < key.size(); ++i) {
    const auto q = static_cast<std::int8_t>(bytes[place.slot * dim + static_cast<std::int64_t>(i)]);
    key[i] = static_cast<double>(exact::from_bf16(scale)) * q;
  }
  return key;
}

}  // namespace fieldprint::eval
