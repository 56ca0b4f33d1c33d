#include "backend/cuda/launch.cuh"
#include "backend/cuda/math.cuh"
#include "backend/cuda/rope.h"
#include "base/bounds.h"
#include "exact/arith.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostWindow = 64;  ///< tokens of a block of threads
constexpr int kMaxHeadDim = static_cast<int>(bounds::kMaxHeadDim);

/// How the work is cut: blockIdx.x is a window of tokens; blockIdx.y a group of rotated heads (queries, then
/// keys), and after those a head of values.
struct Cut {
  std::int32_t tokens;
  std::int32_t window;
  std::int32_t heads;  ///< of a group
  std::int32_t groups;
  std::int64_t page_bytes;
};

__device__ int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
__device__ int lane_index() { return static_cast<int>(threadIdx.x) % 32; }

__device__ void load(const float* from, float (&to)[1]) { to[0] = *from; }
__device__ void load(const float* from, float (&to)[2]) {
  const float2 v = *reinterpret_cast<const float2*>(from);
  to[0] = v.x;
  to[1] = v.y;
}
__device__ void load(const float* from, float (&to)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

__device__ signed char narrow(std::int32_t q) { return static_cast<signed char>(q); }
__device__ void store(std::int8_t* to, const std::int32_t (&q)[1]) { *to = narrow(q[0]); }
__device__ void store(std::int8_t* to, const std::int32_t (&q)[2]) {
  *reinterpret_cast<char2*>(to) = {narrow(q[0]), narrow(q[1])};
}
__device__ void store(std::int8_t* to, const std::int32_t (&q)[4]) {
  *reinterpret_cast<char4*>(to) = {narrow(q[0]), narrow(q[1]), narrow(q[2]), narrow(q[3])};
}

/// A lane's part of a head: kPairs elements of its first half, from index `first` on, and their partners in
/// the second half. Lanes beyond the head hold zeros.
template <int kPairs>
struct Pairs {
  float a[kPairs];
  float b[kPairs];
};

template <int kPairs>
struct Rotation {
  float cos[kPairs];
  float sin[kPairs];
};

template <int kPairs>
__device__ Rotation<kPairs> rotation(const RopeTable& table, int position, int half, int first) {
  Rotation<kPairs> out{};
  if (first >= half) return out;
  const std::int64_t high = static_cast<std::int64_t>(position / exact::kRopeLow) * half + first;
  const std::int64_t low = static_cast<std::int64_t>(position % exact::kRopeLow) * half + first;
  float ch[kPairs], sh[kPairs], cl[kPairs], sl[kPairs];
  load(table.high_cos + high, ch);
  load(table.high_sin + high, sh);
  load(table.low_cos + low, cl);
  load(table.low_sin + low, sl);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    out.cos[i] = __fmaf_rn(ch[i], cl[i], -__fmul_rn(sh[i], sl[i]));
    out.sin[i] = __fmaf_rn(sh[i], cl[i], __fmul_rn(ch[i], sl[i]));
  }
  return out;
}

template <int kPairs>
__device__ void apply_norm(Pairs<kPairs>& head, const float* x, const float* norm, int dim, float epsilon,
                           int first) {
  float squares = 0.0F;
  for (int i = lane_index(); i < dim; i += 32) squares = __fmaf_rn(x[i], x[i], squares);
  const float factor = inverse_rms(reduce_lanes(squares), dim, epsilon);
  if (first >= dim / 2) return;
  float a[kPairs], b[kPairs];
  load(norm + first, a);
  load(norm + dim / 2 + first, b);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    head.a[i] = __fmul_rn(__fmul_rn(head.a[i], factor), a[i]);
    head.b[i] = __fmul_rn(__fmul_rn(head.b[i], factor), b[i]);
  }
}

template <int kPairs>
__device__ void rotate(Pairs<kPairs>& head, const Rotation<kPairs>& by) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float a = head.a[i];
    const float b = head.b[i];
    head.a[i] = __fmaf_rn(a, by.cos[i], -__fmul_rn(b, by.sin[i]));
    head.b[i] = __fmaf_rn(b, by.cos[i], __fmul_rn(a, by.sin[i]));
  }
}

/// Multiplies by the channels' factors from `by` on.
template <int kPairs>
__device__ void scale(Pairs<kPairs>& head, const float* by, int half, int first) {
  if (first >= half) return;
  float a[kPairs], b[kPairs];
  load(by + first, a);
  load(by + half + first, b);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    head.a[i] = __fmul_rn(head.a[i], a[i]);
    head.b[i] = __fmul_rn(head.b[i], b[i]);
  }
}

template <int kPairs>
__device__ void subtract(Pairs<kPairs>& head, const float* offset, int half, int first) {
  if (first >= half) return;
  float a[kPairs], b[kPairs];
  load(offset + first, a);
  load(offset + half + first, b);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    head.a[i] = __fsub_rn(head.a[i], a[i]);
    head.b[i] = __fsub_rn(head.b[i], b[i]);
  }
}

template <int kPairs>
__device__ float abs_max(const Pairs<kPairs>& head) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) largest = max(largest, max(magnitude(head.a[i]), magnitude(head.b[i])));
  return bits_to_float(warp_max(largest));
}

/// Stores the levels of x·by.
template <int kPairs>
__device__ void store_levels(std::int8_t* to, const Pairs<kPairs>& x, float by, int half, int first) {
  if (first >= half) return;
  std::int32_t a[kPairs], b[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    a[i] = clamp_to_level(__fmul_rn(x.a[i], by));
    b[i] = clamp_to_level(__fmul_rn(x.b[i], by));
  }
  store(to + first, a);
  store(to + half + first, b);
}

__device__ bool finite(float amax) { return amax <= exact::kMaxFloat; }

__device__ std::uint8_t* page_of(const RopeAppendArgs& args, const Cut& cut, int t, int head) {
  return args.kv.pool + args.blocks[t] * args.kv.block_stride + args.kv.layer_offset + head * cut.page_bytes;
}

/// Factor on a key's or a value's scale: the token at position 0 has one of its own.
__device__ float sink_factor(const RopeAppendArgs& args, int t, int head, SinkFactor which) {
  return args.positions[t] == 0 ? args.scales.sink[4 * head + which] : 1.0F;
}

template <int kPairs>
__device__ void store_query(const RopeAppendArgs& args, int t, int h, Pairs<kPairs>& head, int first) {
  const int half = args.head_dim / 2;
  scale(head, args.scales.q_factor + h / (args.heads / args.kv_heads) * args.head_dim, half, first);
  const float amax = abs_max(head);
  const bool usable = finite(amax);
  const std::int32_t step = usable ? query_step(amax) : exact::kSmallestStep;
  const std::int64_t row = static_cast<std::int64_t>(t) * args.heads + h;
  if (lane_index() == 0) {
    if (!usable) args.non_finite[t] = 1;
    args.q_step[row] = step;
  }
  if (!usable) head = {};
  store_levels(args.q + row * args.head_dim, head, __fdiv_rn(0x1p22F, __int2float_rn(step)), half, first);
}

template <int kPairs>
__device__ void store_key(const RopeAppendArgs& args, const Cut& cut, int t, int h, Pairs<kPairs>& head,
                          int first) {
  const int dim = args.head_dim;
  const float amax = abs_max(head);
  if (lane_index() == 0 && !finite(amax)) args.non_finite[t] = 1;
  subtract(head, args.scales.k_offset + h * dim, dim / 2, first);
  scale(head, args.scales.k_inverse + h * dim, dim / 2, first);
  std::int8_t* k = reinterpret_cast<std::int8_t*>(page_of(args, cut, t, h)) + args.slots[t] * dim;
  store_levels(k, head, sink_factor(args, t, h, kSinkKeyInverse), dim / 2, first);
}

/// One warp a token: the heads of the group, queries and keys, under one rotation.
template <int kPairs>
__device__ void append_rotated(const RopeAppendArgs& args, const Cut& cut, int begin, int end) {
  const int half = args.head_dim / 2;
  const int first = lane_index() * kPairs;
  const int first_head = static_cast<int>(blockIdx.y) * cut.heads;
  const int last_head = min(first_head + cut.heads, args.heads + args.kv_heads);
  const std::int64_t stride = static_cast<std::int64_t>(args.heads + 2 * args.kv_heads) * args.head_dim;
  for (int t = begin + warp_index(); t < end; t += kWarps) {
    const Rotation<kPairs> turn = rotation<kPairs>(args.rope, args.positions[t], half, first);
    for (int h = first_head; h < last_head; ++h) {
      const float* x = args.qkv + t * stride + h * args.head_dim;
      const bool is_query = h < args.heads;
      Pairs<kPairs> head{};
      if (first < half) {
        load(x + first, head.a);
        load(x + half + first, head.b);
      }
      const float* norm = is_query ? args.q_norm : args.k_norm;
      if (norm != nullptr) apply_norm(head, x, norm, args.head_dim, args.epsilon, first);
      rotate(head, turn);
      if (is_query) {
        store_query(args, t, h, head, first);
      } else {
        store_key(args, cut, t, h - args.heads, head, first);
      }
    }
  }
}

constexpr int kValueStride = kMaxHeadDim + 4;  ///< rows four apart start in different banks

/// The quantised values of a window, and the stores that bring them to their pages: four tokens at a time
/// where they fill a word of the page, else one.
struct ValueWindow {
  std::int8_t q[kMostWindow][kValueStride];
  std::int32_t stores;
  std::uint8_t token[kMostWindow];  ///< first token of each store
  bool word[kMostWindow];           ///< whether it is a store of four
};

/// The tokens of a word, counted from its first: 0, 1, 8, 9. Their order in the page is exact::value_slot's.
__device__ int in_word(int i) { return (i & 1) + 8 * (i >> 1); }
__device__ int place_in_word(int slot) { return (slot & 1) + (slot & 8); }
__host__ __device__ constexpr int value_slot(int slot) {
  return (slot & 0x30) + 4 * ((slot & 7) >> 1) + 2 * ((slot >> 3) & 1) + (slot & 1);
}
static_assert([] {
  for (int slot = 0; slot < exact::kPageTokens; ++slot) {
    if (value_slot(slot) != exact::value_slot(slot)) return false;
  }
  return true;
}());

/// Whether token `first` and those that belong to its word fill it.
__device__ bool fills_word(const RopeAppendArgs& args, int first, int begin, int end) {
  if (first < begin || first + in_word(3) >= end) return false;
  bool fills = place_in_word(args.slots[first]) == 0;
  for (int i = 1; i < 4; ++i) {
    fills = fills && args.blocks[first + in_word(i)] == args.blocks[first] &&
            args.slots[first + in_word(i)] == args.slots[first] + in_word(i);
  }
  return fills;
}

__device__ void list_stores(const RopeAppendArgs& args, int begin, int end, ValueWindow& window) {
  int stores = 0;
  for (int base = begin; base < end; base += 32) {
    const int t = base + lane_index();
    const int place = t < end ? place_in_word(args.slots[t]) : 0;
    const bool word = t < end && fills_word(args, t - place, begin, end);
    const bool listed = t < end && (!word || place == 0);
    const std::uint32_t before = __ballot_sync(kAllLanes, listed);
    if (listed) {
      const int at = stores + __popc(before & ((1U << lane_index()) - 1U));
      window.token[at] = static_cast<std::uint8_t>(t - begin);
      window.word[at] = word;
    }
    stores += __popc(before);
  }
  if (lane_index() == 0) window.stores = stores;
}

__device__ void quantise_value(const RopeAppendArgs& args, int t, int h, std::int8_t* q) {
  const int dim = args.head_dim;
  const std::int64_t row =
      static_cast<std::int64_t>(t) * (args.heads + 2 * args.kv_heads) + args.heads + args.kv_heads + h;
  const float* x = args.qkv + row * dim;
  const float factor = sink_factor(args, t, h, kSinkValueInverse);
  std::uint32_t largest = 0;
#pragma unroll
  for (int first = lane_index() * 4; first < kMaxHeadDim; first += 128) {
    if (first >= dim) break;
    float v[4], inverse[4];
    load(x + first, v);
    load(args.scales.v_inverse + h * dim + first, inverse);
    std::int32_t out[4];
    for (int i = 0; i < 4; ++i) {
      largest = max(largest, magnitude(v[i]));
      out[i] = clamp_to_level(__fmul_rn(__fmul_rn(v[i], inverse[i]), factor));
    }
    store(q + first, out);
  }
  const bool usable = finite(bits_to_float(warp_max(largest)));
  if (lane_index() == 0 && !usable) args.non_finite[t] = 1;
}

/// Values stand transposed in their page, so a window is turned in shared memory first.
__device__ void append_values(const RopeAppendArgs& args, const Cut& cut, int head, int begin, int end,
                              ValueWindow& window) {
  const int dim = args.head_dim;
  for (int t = begin + warp_index(); t < end; t += kWarps) quantise_value(args, t, head, window.q[t - begin]);
  if (warp_index() == kWarps - 1) list_stores(args, begin, end, window);
  __syncthreads();
  const int stores = window.stores;
  for (int i = static_cast<int>(threadIdx.x); i < dim * stores; i += kThreads) {
    const int d = i / stores;
    const int entry = i % stores;
    const int at = window.token[entry];
    const int t = begin + at;
    std::uint8_t* to =
        page_of(args, cut, t, head) + (dim + d) * exact::kPageTokens + value_slot(args.slots[t]);
    if (window.word[entry]) {
      *reinterpret_cast<char4*>(to) = {window.q[at + in_word(0)][d], window.q[at + in_word(1)][d],
                                       window.q[at + in_word(2)][d], window.q[at + in_word(3)][d]};
    } else {
      *to = static_cast<std::uint8_t>(window.q[at][d]);
    }
  }
}

template <int kPairs>
__global__ void __launch_bounds__(kThreads) append(const __grid_constant__ RopeAppendArgs args, Cut cut) {
  let_later_kernels_start();
  wait_for_earlier_kernels();
  __shared__ ValueWindow window;
  const int begin = static_cast<int>(blockIdx.x) * cut.window;
  const int end = min(begin + cut.window, cut.tokens);
  const int group = static_cast<int>(blockIdx.y);
  if (group < cut.groups) {
    append_rotated<kPairs>(args, cut, begin, end);
  } else {
    append_values(args, cut, group - cut.groups, begin, end, window);
  }
}

}  // namespace

void rope_append(const RopeAppendArgs& args, std::int32_t tokens, Stream stream) {
  if (tokens == 0) return;
  require(args.head_dim % 16 == 0 && args.head_dim <= kMaxHeadDim, "head size of rope_append");
  // Few tokens are spread over as many warps as can be; many share rotations and fill words of a page.
  constexpr std::int32_t kManyTokens = 512;
  const bool many = tokens >= kManyTokens;
  Cut cut{tokens, many ? kMostWindow : kWarps, many ? 4 : 1, 0, page_bytes(args.head_dim)};
  cut.groups = (args.heads + args.kv_heads + cut.heads - 1) / cut.heads;
  const dim3 grid(static_cast<unsigned>((tokens + cut.window - 1) / cut.window),
                  static_cast<unsigned>(cut.groups + args.kv_heads));
  const LaunchShape shape{grid, kThreads, 0, 1};
  if (args.head_dim <= 64) return launch_early(shape, stream, append<1>, args, cut);
  if (args.head_dim <= 128) return launch_early(shape, stream, append<2>, args, cut);
  launch_early(shape, stream, append<4>, args, cut);
}

}  // namespace fieldprint::backend::cuda
