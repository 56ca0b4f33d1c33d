#include "backend/scalar/rope.h"

#include <array>
#include <cmath>
#include <cstring>
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

/// Quantises a key or value: the scale is rounded to bf16 first, and the rounded scale divides.
/// `stride` is the distance between elements in the page.
std::uint16_t store_quantised(std::span<const float> x, std::int8_t* page, std::int64_t stride,
                              std::int32_t& non_finite) {
  const auto [unused, scale] = exact::quant_scale(exact::abs_max(x), exact::kA8Max);
  if (!(scale < exact::kMaxFloat)) non_finite = 1;
  const std::uint16_t stored = exact::to_bf16(scale);
  const float rounded = exact::from_bf16(stored);
  const bool usable = rounded > 0.0F && rounded < exact::kMaxFloat;
  const float inverse = usable ? 1.0F / rounded : 0.0F;
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::int32_t q = exact::quantise(x[i], inverse);
    q = q > 127 ? 127 : q;
    q = q < -127 ? -127 : q;
    page[static_cast<std::int64_t>(i) * stride] = static_cast<std::int8_t>(q);
  }
  return stored;
}

void append_token(const RopeAppendArgs& args, std::int64_t t) {
  const std::int64_t dim = args.head_dim;
  const std::size_t size = static_cast<std::size_t>(dim);
  const Rotation turn = rotation(args.rope, args.positions[t], dim / 2);
  const float* row = args.qkv + t * (args.heads + 2 * args.kv_heads) * dim;

  for (std::int64_t h = 0; h < args.heads; ++h) {
    const Head head = rotated(row + h * dim, args.q_norm, args, turn);
    const auto [inverse, scale] =
        exact::quant_scale(exact::abs_max(std::span(head).first(size)), exact::kA8Max);
    if (!(scale < exact::kMaxFloat)) args.non_finite[t] = 1;
    std::int8_t* q = args.q + (t * args.heads + h) * dim;
    for (std::size_t i = 0; i < size; ++i) q[i] = static_cast<std::int8_t>(exact::quantise(head[i], inverse));
    args.q_scale[t * args.heads + h] = scale * args.score_scale;
  }

  const std::int64_t slot = args.slots[t];
  for (std::int64_t h = 0; h < args.kv_heads; ++h) {
    std::uint8_t* page =
        args.kv.pool + args.blocks[t] * args.kv.block_stride + args.kv.layer_offset + h * page_bytes(dim);
    auto* keys = reinterpret_cast<std::int8_t*>(page);
    std::int8_t* values = keys + exact::kPageTokens * dim;
    std::uint8_t* scales = page + 2 * exact::kPageTokens * dim;

    Head key = rotated(row + (args.heads + h) * dim, args.k_norm, args, turn);
    for (std::size_t i = 0; i < size; ++i) key[i] -= args.k_offset[h * dim + static_cast<std::int64_t>(i)];
    const std::uint16_t key_scale =
        store_quantised(std::span(key).first(size), keys + slot * dim, 1, args.non_finite[t]);
    const std::span<const float> value(row + (args.heads + args.kv_heads + h) * dim, size);
    const std::uint16_t value_scale =
        store_quantised(value, values + slot, exact::kPageTokens, args.non_finite[t]);
    std::memcpy(scales + 2 * slot, &key_scale, 2);
    std::memcpy(scales + 2 * (exact::kPageTokens + slot), &value_scale, 2);
  }
}

}  // namespace

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) append_token(args, t);
}

}  // namespace fieldprint::backend::scalar
