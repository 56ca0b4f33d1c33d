#include "verify/kv_file.h"

#include <algorithm>

#include "exact/arith.h"

namespace fieldprint::verify {
namespace {

/// The slot whose value lies at this byte of a channel.
std::int32_t slot_at(std::int64_t byte) {
  std::int32_t slot = 0;
  while (exact::value_slot(slot) != byte) ++slot;
  return slot;
}

/// What lies at byte `offset` of a block.
std::string describe(std::int64_t offset, const weights::ModelSpec& spec) {
  const std::int64_t dim = spec.head_dim;
  const std::int64_t page = offset / backend::page_bytes(dim);
  const std::int64_t within = offset % backend::page_bytes(dim);
  const std::int64_t half = exact::kPageTokens * dim;
  const std::string where = fmt::format("layer {}, KV head {}", page / spec.kv_heads, page % spec.kv_heads);
  if (within < half) return fmt::format("{}, key of slot {}, channel {}", where, within / dim, within % dim);
  const std::int64_t value = within - half;
  return fmt::format("{}, value of slot {}, channel {}", where, slot_at(value % exact::kPageTokens),
                     value / exact::kPageTokens);
}

}  // namespace

commit::Check check_kv_file(std::span<const std::uint8_t> kv, const commit::Body& body, const Replay& replay,
                            const weights::ModelSpec& spec) {
  const std::size_t bytes =
      static_cast<std::size_t>(spec.layers * spec.kv_heads * backend::page_bytes(spec.head_dim));
  if (kv.size() != bytes * body.kv_blocks.size()) {
    return {"kv", false,
            fmt::format("the file has {} bytes, but {} blocks of {} were expected", kv.size(),
                        body.kv_blocks.size(), bytes)};
  }
  for (std::size_t i = 0; i < body.kv_blocks.size(); ++i) {
    const std::span<const std::uint8_t> kept = kv.subspan(i * bytes, bytes);
    const std::vector<std::uint8_t> given = replay.block_bytes(static_cast<std::int64_t>(i));
    const auto [theirs, ours] = std::mismatch(kept.begin(), kept.end(), given.begin());
    if (theirs == kept.end()) continue;
    return {
        fmt::format("kv[{}]", i), false,
        fmt::format("block {} of the file differs first in {}: it holds {:#04x}, the replay gives {:#04x}", i,
                    describe(theirs - kept.begin(), spec), *theirs, *ours)};
  }
  return {"kv", true,
          fmt::format("all {} blocks of the file are what the replay gives", body.kv_blocks.size())};
}

}  // namespace fieldprint::verify
