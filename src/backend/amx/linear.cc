#include "backend/amx/linear.h"

#include "backend/amx/linear_w4g32.h"
#include "backend/amx/linear_w8r.h"
#include "backend/avx512/linear.h"

namespace fieldprint::backend::amx {
namespace {

/// Fewer tokens fill too little of a tile, or are limited by the bandwidth of the weights.
constexpr std::int32_t kFewestTokens = 12;

void w8_linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t full = args.tokens / kTileTokens * kTileTokens;
  const auto run = args.x.format == ActivationFormat::kA8 ? w8_part<ActivationFormat::kA8>
                                                          : w8_part<ActivationFormat::kA16>;
  if (full > 0) {
    configure_tiles(kTileTokens, kW8Cols);
    run(args, {begin, end, 0, full, kTileTokens});
  }
  if (full < args.tokens) {
    const int rest = static_cast<int>(args.tokens - full);
    configure_tiles(rest, kW8Cols);
    run(args, {begin, end, full, args.tokens, rest});
  }
  // A thread that holds no tiles is cheaper to switch.
  _tile_release();
}

/// The tokens of a w4g32 linear from `first` on.
LinearArgs w4_rest(const LinearArgs& args, std::int64_t first) {
  const std::int64_t blocks = args.w.cols / kBlockCols;
  LinearArgs rest = args;
  rest.tokens -= static_cast<std::int32_t>(first);
  rest.x.q += first * args.w.cols;
  rest.x.scale += first * blocks;
  rest.x.block_sum += first * blocks;
  rest.y += first * args.y_stride;
  return rest;
}

void w4_linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t full = args.tokens / kW4Tokens * kW4Tokens;
  configure_tiles(kW4Tokens, kBlockCols);
  w4_tiles(args, begin, end, full);
  _tile_release();
  if (full < args.tokens) avx512::linear(w4_rest(args, full), begin, end);
}

}  // namespace

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  const bool w4 = args.w.format == LinearFormat::kW4G32;
  if (args.tokens < kFewestTokens || (!w4 && args.w.cols % kW8Cols != 0)) {
    return avx512::linear(args, begin, end);
  }
  if (w4) {
    w4_linear(args, begin, end);
  } else {
    w8_linear(args, begin, end);
  }
}

}  // namespace fieldprint::backend::amx
