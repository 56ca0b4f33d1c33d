#include <fmt/format.h>

#include <limits>
#include <vector>

#include "vectors/device.h"
#include "vectors/golden.h"
#include "vectors/source.h"
#include "weights/rope_table.h"

/// Head norms, rotation, and the quantisation of queries, keys and values.
namespace fieldprint::vectors {
namespace {

using backend::Backend;

constexpr std::int32_t kTokens = 8;
constexpr std::int32_t kHeads = 6;
constexpr std::int32_t kKvHeads = 2;
constexpr std::int32_t kHighRows = 4;
constexpr std::int32_t kBlocks = 2;

/// Positive factors within a half of `middle`; for keys and values every fourth is 1, so that ties come up.
std::vector<float> factors(std::int64_t count, float middle, bool ties, Source& source) {
  std::vector<float> x = floats(count, 0.5F, source);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = ties && i % 4 == 0 ? 1.0F : middle + middle * x[i];
  return x;
}

/// Queries, keys and values, those near the largest float times `huge`.
std::vector<float> head_rows(std::int64_t rows, std::int64_t dim, int kinds, float huge, Source& source) {
  std::vector<float> x = rows_of_kinds(rows, dim, kinds, source);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t kind = i / static_cast<std::size_t>(dim) % static_cast<std::size_t>(kinds);
    if (static_cast<RowKind>(kind) == RowKind::kHuge) x[i] *= huge;
  }
  return x;
}

/// Rows of all finite kinds, or of all kinds.
void record_case(Backend& backend, Recorder& out, std::int32_t dim, bool norms, bool finite) {
  Source source(20);
  const std::int64_t rows = kTokens * (kHeads + 2 * kKvHeads);
  // So large that they stay finite when they are rotated, or squared.
  const float huge = norms ? 0x1p-80F : 0.25F;
  const Device<float> qkv(
      backend, head_rows(rows, dim, finite ? kFiniteRowKinds : kRowKinds, finite ? huge : 1.0F, source));
  const Device<float> q_norm(backend, floats(dim, 2.0F, source));
  const Device<float> k_norm(backend, floats(dim, 2.0F, source));
  const std::int64_t channels = kKvHeads * dim;
  const Device<float> k_offset(backend, floats(channels, 0.5F, source));
  const Device<float> k_inverse(backend, factors(channels, 100.0F, true, source));
  const Device<float> q_factor(backend, factors(channels, 0.2F, false, source));
  const Device<float> v_inverse(backend, factors(channels, 100.0F, true, source));
  const Device<float> sink(
      backend, std::vector<float>{0.25F, 4.0F, 1.5F, 2.0F / 3.0F, 3.0F, 1.0F / 3.0F, 0.1F, 10.0F});
  const std::size_t pairs = static_cast<std::size_t>(dim / 2);
  const Device<float> table(backend, weights::rope_table(weights::rope_frequencies(10000.0, dim), kHighRows));
  const float* low = table.data() + 2 * kHighRows * pairs;
  const std::vector<std::int32_t> positions = {0, 1, 255, 256, 257, 511, 0, 1023};
  const std::vector<std::int32_t> blocks = {0, 0, 0, 1, 1, 1, 1, 1};
  const std::vector<std::int32_t> slots = {0, 62, 63, 0, 1, 2, 33, 63};
  const Device<std::int32_t> device_positions(backend, positions);
  const Device<std::int32_t> device_blocks(backend, blocks);
  const Device<std::int32_t> device_slots(backend, slots);
  const std::int64_t layer_bytes = kKvHeads * backend::page_bytes(dim);
  const Device<std::uint8_t> pool(backend, static_cast<std::size_t>(kBlocks * 2 * layer_bytes));
  const Device<std::int8_t> q(backend, static_cast<std::size_t>(kTokens * kHeads * dim));
  const Device<std::int32_t> q_step(backend, std::size_t{kTokens * kHeads});
  const Device<std::int32_t> non_finite(backend, std::size_t{kTokens});
  backend.rope_append(
      {.qkv = qkv.data(),
       .heads = kHeads,
       .kv_heads = kKvHeads,
       .head_dim = dim,
       .q_norm = norms ? q_norm.data() : nullptr,
       .k_norm = norms ? k_norm.data() : nullptr,
       .epsilon = 1e-6F,
       .rope = {table.data(), table.data() + kHighRows * pairs, low, low + exact::kRopeLow * pairs},
       .positions = device_positions.data(),
       .blocks = device_blocks.data(),
       .slots = device_slots.data(),
       .scales = {.k_offset = k_offset.data(),
                  .k_inverse = k_inverse.data(),
                  .q_factor = q_factor.data(),
                  .v_inverse = v_inverse.data(),
                  .v_scale = nullptr,
                  .sink = sink.data()},
       .kv = {pool.data(), 2 * layer_bytes, layer_bytes},
       .q = q.data(),
       .q_step = q_step.data(),
       .non_finite = non_finite.data()},
      kTokens);
  const std::string name =
      fmt::format("rope_append/{}{}{}", dim, norms ? ".norms" : "", finite ? "" : ".any");
  out.inputs(
      fmt::format("seed 20, 6 heads, 2 KV heads, head size {}, rows of {} kinds{}, base 10000, "
                  "two tokens in the sink, layer 1 of 2",
                  dim, finite ? "all finite" : "all", norms ? ", head norms with epsilon 1e-6" : ""));
  out.add(name + "/non_finite", non_finite.host());
  // What a row that is not finite leaves behind is not part of the contract.
  if (!finite) return;
  out.add(name + "/q", q.host());
  out.add(name + "/q_step", q_step.host());
  out.add(name + "/pool", pool.host());
}

}  // namespace

void record_rope(Backend& backend, Recorder& out) {
  for (const std::int32_t dim : {64, 80, 96, 128, 256}) record_case(backend, out, dim, false, true);
  for (const std::int32_t dim : {64, 256}) record_case(backend, out, dim, true, true);
  for (const bool norms : {false, true}) record_case(backend, out, 64, norms, false);
}

}  // namespace fieldprint::vectors
