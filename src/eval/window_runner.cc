#include "eval/window_runner.h"

#include <limits>
#include <numeric>

#include "core/block_layout.h"

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

}  // namespace fieldprint::eval
