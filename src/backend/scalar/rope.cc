#include "backend/scalar/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "base/bounds.h"
#include "exact/arith.h"

namespace fieldprint::backend::scalar {
namespace {

using Head = std::array<float, bounds::kMaxHeadDim>;

/// cos and sin of every rotation of one position.
struct Rotation {
  std::array<float, bounds::kMaxHeadDim / 2> cos;
  std::array<float, bounds::kMaxHeadDim / 2> sin;
};

Rotation rotation(const RopeTable& table, std::int64_t position, std::int64_t half) {
  const std::int64_t high = position / exact::kRopeLow * half;
  const std::int64_t low = position % exact::kRopeLow * half;
  Rotation out{};
  for (std::int64_t i = 0; i < half; ++i) {
    const float ch = table.high_cos[high + i];
    const float sh = table.high_sin[high + i];
    const float cl = table.low_cos[low + i];
    const float sl = table.low_sin[low + i];
    out.cos[static_cast<std::size_t>(i)] = std::fma(ch, cl, -(sh * sl));
    out.sin[static_cast<std::size_t>(i)] = std::fma(sh, cl, ch * sl);
  }
  return out;
}

/// The head after its norm (if it has one) and rotation; element i pairs with element i + D/2.
Head rotated(const float* x, const float* norm, const RopeAppendArgs& args, const Rotation& rotation) {
  const std::size_t dim = static_cast<std::size_t>(args.head_dim);
  Head head{};
  const float factor =
      norm != nullptr ? exact::inverse_rms(std::span<const float>(x, dim), args.epsilon) : 0.0F;
  for (std::size_t i = 0; i < dim; ++i) head[i] = norm != nullptr ? (x[i] * factor) * norm[i] : x[i];
  const std::size_t half = dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = std::fma(a, rotation.cos[i], -(b * rotation.sin[i]));
    head[i + half] = std::fma(b, rotation.cos[i], a * rotation.sin[i]);
  }
  return head;
}

bool finite(std::span<const float> x) { return exact::abs_max(x) <= exact::kMaxFloat; }

void store_query(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, Head& head) {
  const std::int64_t dim = args.head_dim;
  const float* factor = args.scales.q_factor + h / (args.heads / args.kv_heads) * dim;
  for (std::int64_t d = 0; d < dim; ++d) head[static_cast<std::size_t>(d)] *= factor[d];
  std::int8_t* q = args.q + (t * args.heads + h) * dim;
  std::int32_t& step = args.q_step[t * args.heads + h];
  const std::span<const float> row = std::span(head).first(static_cast<std::size_t>(dim));
  if (!finite(row)) {
    args.non_finite[t] = 1;
    step = exact::kSmallestStep;
    std::fill_n(q, dim, std::int8_t{0});
    return;
  }
  step = exact::query_step(exact::abs_max(row));
  const float inverse = 0x1p22F / static_cast<float>(step);
  for (std::int64_t d = 0; d < dim; ++d) {
    q[d] = exact::clamp_to_level(row[static_cast<std::size_t>(d)] * inverse);
  }
}

/// Key and value of one head, in their slot of the page.
void store_pair(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const Head& key,
                const float* value) {
  const std::int64_t dim = args.head_dim;
  const std::size_t size = static_cast<std::size_t>(dim);
  const KvScales& scales = args.scales;
  const float* sink = scales.sink + 4 * h;
  const bool in_sink = args.positions[t] == 0;
  const std::int32_t slot = args.slots[t];
  auto* keys = reinterpret_cast<std::int8_t*>(args.kv.pool + args.blocks[t] * args.kv.block_stride +
                                              args.kv.layer_offset + h * page_bytes(dim));
  std::int8_t* values = keys + exact::kPageTokens * dim;
  if (!finite(std::span(key).first(size)) || !finite(std::span(value, size))) args.non_finite[t] = 1;
  for (std::int64_t d = 0; d < dim; ++d) {
    const std::int64_t channel = h * dim + d;
    float k = (key[static_cast<std::size_t>(d)] - scales.k_offset[channel]) * scales.k_inverse[channel];
    float v = value[d] * scales.v_inverse[channel];
    if (in_sink) {
      k *= sink[kSinkKeyInverse];
      v *= sink[kSinkValueInverse];
    }
    keys[slot * dim + d] = exact::clamp_to_level(k);
    values[d * exact::kPageTokens + exact::value_slot(slot)] = exact::clamp_to_level(v);
  }
}

void append_token(const RopeAppendArgs& args, std::int64_t t) {
  const std::int64_t dim = args.head_dim;
  const Rotation turn = rotation(args.rope, args.positions[t], dim / 2);
  const float* row = args.qkv + t * (args.heads + 2 * args.kv_heads) * dim;
  for (std::int64_t h = 0; h < args.heads; ++h) {
    Head head = rotated(row + h * dim, args.q_norm, args, turn);
    store_query(args, t, h, head);
  }
  for (std::int64_t h = 0; h < args.kv_heads; ++h) {
    store_pair(args, t, h, rotated(row + (args.heads + h) * dim, args.k_norm, args, turn),
               row + (args.heads + args.kv_heads + h) * dim);
  }
}

}  // namespace

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) append_token(args, t);
}

}  // namespace fieldprint::backend::scalar
