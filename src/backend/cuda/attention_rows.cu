#include "backend/cuda/attention_rows.h"
#include "backend/cuda/attention_rows_stages.cuh"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/wgmma.cuh"

/// A block of two or three warpgroups of 64 query rows each, and two warps that bring what they need. A
/// warpgroup multiplies, weighs, multiplies and folds one tile after the other; while it waits for the tensor
/// cores, the others compute.
namespace fieldprint::backend::cuda {
namespace {

/// One thread of a warpgroup. What is seldom needed is not in registers but in the thread's own places in
/// shared memory: the row's state, and more.
template <int kPad>
class Consumer {
 public:
  using S = RowsShape<kPad>;

  __device__ Consumer(const RowsArgs& args, RowsShared<S> shared, int group)
      : args_(args),
        shared_(shared),
        group_(group),
        own_(shared.places() + group * 128 * S::kPlaces * 16 + lane() * 16) {}

  __device__ void attend(const PlannedTask& task) {
    start(task);
    const std::int32_t end = task.item.end_tile;
    // Tiles with none of these bits begin a chunk.
    const std::int32_t chunk_mask = task.item.context != 0 ? exact::kChunkTiles - 1 : 0x7FFFFFFF;
    bool first_chunk = true;
    bool first = true;
    for (std::int32_t t = task.item.first_tile; t < end; ++t) {
      append(t, first, t + 1 == end);
      first = ((t + 1) & chunk_mask) == 0;
      if (first || t + 1 == end) {
        end_chunk(task, first_chunk, t + 1 == end);
        first_chunk = false;
      }
    }
    store(task);
    arrive_as_warp(shared_.info_empty(count_), elected());
    ++count_;
  }

 private:
  static constexpr int kSoftmaxPlace = S::kPlaces - 3;  ///< the row's references and denominators
  static constexpr int kChunkPlace = S::kPlaces - 2;    ///< the chunk's
  static constexpr int kRowPlace =
      S::kPlaces - 1;  ///< tokens that all rows of the warp see; the sink's references

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 128; }
  __device__ bool odd_lane() const { return (own_ & 16U) != 0; }
  __device__ std::uint32_t place(int index) const { return own_ + 128 * 16 * index; }
  /// Of the block's rows, the lane's two.
  __device__ int row_of(int r) const {
    return group_ * kGroupRows + lane() / 32 * 16 + lane() % 32 / 4 + 8 * r;
  }

  __device__ RowSoftmax load_softmax(int index) const {
    const float4 x = load_shared(place(index));
    return {{x.x, x.y}, {x.z, x.w}};
  }
  __device__ void store_softmax(int index, const RowSoftmax& x) const {
    store_shared(place(index),
                 make_float4(x.reference[0], x.reference[1], x.denominator[0], x.denominator[1]));
  }

  __device__ RowsInfo<S> info() const { return {shared_.info(count_)}; }
  __device__ SeenRange seen_of(int r) const {
    const float4 row = load_shared(info().row(row_of(r)));
    return {__float_as_int(row.z), __float_as_int(row.w)};
  }

  /// The rows of a new task.
  __device__ void start(const PlannedTask& task) {
    barrier_wait(shared_.queries_full(), count_ % 2);
    SeenRange all{0, 0x7FFFFFFF};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float4 row = load_shared(info().row(row_of(r)));
      rows_.unit[r] = row.x;
      rows_.floor[r] = __float_as_int(row.y);
      all.first = max(all.first, __float_as_int(row.z));
      all.last = min(all.last, __float_as_int(row.w));
    }
    float sink[2] = {};
    if (task.item.state < 0) attend_sink(sink);
    all.first = __reduce_max_sync(kAllLanes, all.first);
    all.last = __reduce_min_sync(kAllLanes, all.last);
    store_shared(place(kRowPlace),
                 make_float4(__int_as_float(all.first), __int_as_float(all.last), sink[0], sink[1]));
  }

  /// References of the sink, a token with scale factors of its own; -inf where it is not seen.
  __device__ void attend_sink(float (&reference)[2]) const {
    const AttentionArgs& args = args_.attention;
    int dot[2] = {};
#pragma unroll
    for (int i = 0; i < kPad / 16; ++i) {
      const int word = 4 * i + lane() % 4;
      if (4 * word >= args.head_dim) continue;
      const int mine = load_word(info().sink_key(4 * word));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row_of(r);
        const int query = load_word(shared_.queries() + i / 8 * S::kRows * 128 + row * 128 +
                                    ((word % 32 / 4 ^ row % 8) << 4) + word % 4 * 4);
        dot[r] = __dp4a(mine, query, dot[r]);
      }
    }
    const float factor = __int_as_float(load_word(info().sink_key_scale()));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      dot[r] += __shfl_xor_sync(kAllLanes, dot[r], 1);
      dot[r] += __shfl_xor_sync(kAllLanes, dot[r], 2);
      // Without anchors a query sees as many tokens of the context as there are positions before it.
      const bool seen = args.window == 0 || seen_of(r).last < args.window;
      reference[r] =
          seen ? __fmul_rn(__fmul_rn(__int2float_rn(dot[r]), rows_.unit[r]), factor) : no_reference();
    }
  }

  /// Appends a tile to the chunk, or with `first` begins one with it. With `last`, which is the task's last
  /// tile, hands the queries back as soon as they are done with.
  __device__ void append(std::int32_t t, bool first, bool last) {
    std::int32_t scores[kScores];
    const float4 all = load_shared(place(kRowPlace));
    wait_unit();
    multiply_keys(scores);
    Wgmma<kTile>::template wait<0>(scores);
    release_unit();
    const std::int32_t start = t * kTile;
    if (start < __float_as_int(all.x) || start + kTile > __float_as_int(all.y)) hide_unseen(start, scores);
    if (last && (kEveryLaneArrives || elected())) barrier_arrive(shared_.queries_empty());

    std::int32_t largest[2];
    std::uint32_t weights[kWeightWords];
    std::uint32_t lane_sums[2];
    largest_scores(scores, largest);
    weigh(scores, rows_, largest, weights, lane_sums);
    RowSoftmax next;
    quad_sums(lane_sums, next.denominator);
    const bool nothing[2] = {largest[0] == kMasked, largest[1] == kMasked};
#pragma unroll
    for (int r = 0; r < 2; ++r) next.reference[r] = __fmul_rn(__int2float_rn(largest[r]), rows_.unit[r]);
    RowSoftmax chunk = load_softmax(kChunkPlace);
    const Joins joins = join(chunk, next, first, nothing, odd_lane());
    store_softmax(kChunkPlace, chunk);

    wait_unit();
#pragma unroll
    for (int half = 0; half < S::kHalves; ++half) {
      std::int32_t sums[S::kSums];
      multiply_values(half, weights, sums);
      Wgmma<2 * S::kSums>::template wait<0>(sums);
      if (half + 1 == S::kHalves) release_unit();
      join_tile(output_[half], sums, joins);
    }
  }

  __device__ void multiply_keys(std::int32_t (&scores)[kScores]) const {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kPad / 32; ++k) {
      const int panel = k / 4;
      const std::uint64_t a = descriptor<128>(
          shared_.queries() + panel * S::kRows * 128 + group_ * kGroupRows * 128, 32 * k - 128 * panel);
      const std::uint64_t b = descriptor < S::kWide ? 128
                                                    : kPad > (shared_.unit(turn_.slot) + panel * kTile * 128,
                                                              32 * k - 128 * panel);
      if (k == 0) {
        Wgmma<kTile>::start_shared(scores, a, b);
      } else {
        Wgmma<kTile>::add_shared(scores, a, b);
      }
    }
    wgmma_commit();
  }

  __device__ void multiply_values(int half, const std::uint32_t (&weights)[kWeightWords],
                                  std::int32_t (&sums)[S::kSums]) const {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTile / 32; ++k) {
      const std::uint64_t b =
          descriptor<64>(shared_.unit(turn_.slot), k / 2 * 64 * kPad + half * 64 * 128 + k % 2 * 32);
      if (k == 0) {
        Wgmma<2 * S::kSums>::start_weights(sums, weights, b);
      } else {
        Wgmma<2 * S::kSums>::add_weights(sums, weights + 4 * k, b);
      }
    }
    wgmma_commit();
  }

  __device__ void wait_unit() const { barrier_wait(shared_.full(turn_.slot), turn_.parity); }
  __device__ void release_unit() {
    if (elected()) barrier_arrive(shared_.empty(turn_.slot));
    turn_.next();
  }

  __device__ void hide_unseen(std::int32_t start, std::int32_t (&scores)[kScores]) const {
    const std::int32_t own = start + 2 * (lane() % 4);
    const SeenRange seen[2] = {seen_of(0), seen_of(1)};
    const std::int32_t first[2] = {seen[0].first - own, seen[1].first - own};
    const std::int32_t last[2] = {seen[0].last - own, seen[1].last - own};
    mask(scores, first, last);
  }

  __device__ float* output(int quad) { return output_[4 * quad / S::kSums] + 4 * quad % S::kSums; }

  /// Appends the chunk to the row, which is in the thread's places or, at the end, where the chunk was. Of
  /// the largest heads it is where the item's results will be.
  __device__ void end_chunk(const PlannedTask& task, bool first, bool end) {
    const RowSoftmax chunk = load_softmax(kChunkPlace);
    if (first) {
      store_softmax(kSoftmaxPlace, chunk);
    } else {
      float4 row_output[S::kWide ? 1 : S::kOutputs / 4];
      if constexpr (!S::kWide) {
#pragma unroll
        for (int n = 0; n < S::kOutputs / 4; ++n) row_output[n] = load_shared(place(n));
      }
      RowSoftmax row = load_softmax(kSoftmaxPlace);
      const bool nothing[2] = {isinf(chunk.reference[0]) != 0, isinf(chunk.reference[1]) != 0};
      const Joins joins = join(row, chunk, false, nothing, odd_lane());
      store_softmax(kSoftmaxPlace, row);
      if constexpr (S::kWide) {
        join_results(task, joins);
      } else {
#pragma unroll
        for (int n = 0; n < S::kOutputs / 4; ++n) join_chunk(n, row_output[n], joins);
      }
    }
    if (end) return;
    if constexpr (S::kWide) {
#pragma unroll
      for (int r = 0; r < 2; ++r) store_outputs(r, results_of(task, r));
    } else {
#pragma unroll
      for (int n = 0; n < S::kOutputs / 4; ++n) {
        const float(&o)[4] = *reinterpret_cast<const float(*)[4]>(output(n));
        store_shared(place(n), make_float4(o[0], o[1], o[2], o[3]));
      }
    }
  }

  /// Keeps the loads for all outputs from being on their way together where there are no registers for them.
  __device__ static void few_loads_at_once(int n) {
    if (S::kWide && n % 4 == 0) asm volatile("" ::: "memory");
  }

  /// Four outputs become those of `mine` and the part that they were.
  __device__ void join_chunk(int quad, const float4& mine, const Joins& joins) {
    float* const own = output(quad);
    const float4 sum = join_outputs(mine, own, joins);
    own[0] = sum.x;
    own[1] = sum.y;
    own[2] = sum.z;
    own[3] = sum.w;
  }
  __device__ void join_results(const PlannedTask& task, const Joins& joins) {
    const float* const from[2] = {results_of(task, 0), results_of(task, 1)};
#pragma unroll
    for (int n = 0; n < S::kOutputs / 4; ++n) {
      few_loads_at_once(n);
      float2 mine[2] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (from[r] == nullptr || 8 * n >= args_.attention.head_dim) continue;
        mine[r] = *reinterpret_cast<const float2*>(from[r] + 8 * n);
      }
      join_chunk(n, make_float4(mine[0].x, mine[0].y, mine[1].x, mine[1].y), joins);
    }
  }

  /// Where the lane's channels of its r-th row go, if there is such a row.
  __device__ float* results_of(const PlannedTask& task, int r) const {
    const std::int32_t group = args_.attention.heads / args_.attention.kv_heads;
    const std::int32_t query = row_of(r) / group;
    if (query >= task.item.queries) return nullptr;
    const std::int32_t head = task.kv_head * group + row_of(r) % group;
    float* to = nullptr;
    if (task.item.state < 0) {
      const std::int64_t token = load_word(info().token(row_of(r)));
      to = args_.attention.out + (token * args_.attention.heads + head) * args_.attention.head_dim;
    } else {
      to = args_.states.output(task.item.state + query, head);
    }
    return to + 2 * (lane() % 4);
  }
  __device__ void store_outputs(int r, float* to) {
    if (to == nullptr) return;
#pragma unroll
    for (int n = 0; n < S::kOutputs / 4; ++n) {
      if (8 * n >= args_.attention.head_dim) continue;
      *reinterpret_cast<float2*>(to + 8 * n) = make_float2(output(n)[2 * r], output(n)[2 * r + 1]);
    }
  }

  __device__ void store(const PlannedTask& task) {
    const RowSoftmax softmax = load_softmax(kSoftmaxPlace);
    const std::int32_t group = args_.attention.heads / args_.attention.kv_heads;
    const std::int32_t channels = args_.attention.head_dim;
    const bool is_result = task.item.state < 0;
    if (is_result) finish(task, softmax);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int32_t query = row_of(r) / group;
      const std::int32_t head = task.kv_head * group + row_of(r) % group;
      if (query >= task.item.queries) continue;
      float* to = nullptr;
      if (is_result) {
        const std::int64_t token = load_word(info().token(row_of(r)));
        const std::int64_t row = token * args_.attention.heads + head;
        to = args_.attention.out + row * args_.attention.head_dim;
        if (lane() % 4 == 0) args_.attention.anchor_mass[row] = 0.0F;
      } else {
        const std::int64_t state = task.item.state + query;
        to = args_.states.output(state, head);
        if (lane() % 4 == 0) {
          *reinterpret_cast<float2*>(args_.states.softmax(state, head)) =
              make_float2(softmax.reference[r], softmax.denominator[r]);
        }
      }
      to += 2 * (lane() % 4);
#pragma unroll
      for (int n = 0; n < S::kOutputs / 4; ++n) {
        if (8 * n >= channels) continue;
        *reinterpret_cast<float2*>(to + 8 * n) = make_float2(output(n)[2 * r], output(n)[2 * r + 1]);
      }
    }
  }

  /// From the state of a row's whole context to its result: the sink comes first, and there are no anchors.
  __device__ void finish(const PlannedTask& task, const RowSoftmax& context) {
    const AttentionArgs& args = args_.attention;
    const float4 row = load_shared(place(kRowPlace));
    RowSoftmax sum{{row.z, row.w}, {}};
    bool nothing[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum.denominator[r] = isinf(sum.reference[r]) ? kNothing : static_cast<float>(exact::kLargestWeight);
      nothing[r] = isinf(context.reference[r]) != 0;
    }
    const bool no_sink[2] = {isinf(row.z) != 0, isinf(row.w) != 0};
    const Joins joins = join(sum, context, false, nothing, odd_lane());
    const float inverse[2] = {__frcp_rn(sum.denominator[0]), __frcp_rn(sum.denominator[1])};
    const int channel = 2 * (lane() % 4);
#pragma unroll
    for (int n = 0; n < S::kOutputs / 4; ++n) {
      few_loads_at_once(n);
      const float2 sinks = load_pair(info().sink_value(channel + 8 * n));
      float2 scales{};
      if (channel + 8 * n < args.head_dim) {
        scales = *reinterpret_cast<const float2*>(args.scales.v_scale + task.kv_head * args.head_dim +
                                                  channel + 8 * n);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float sink = i == 0 ? sinks.x : sinks.y;
        const float scale = i == 0 ? scales.x : scales.y;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& mine = output(n)[2 * r + i];
          mine = joins.fold(no_sink[r] ? kNothing : sink, mine, r);
          mine = __fmul_rn(__fmul_rn(mine, inverse[r]), scale);
        }
      }
    }
  }

  const RowsArgs& args_;
  RowsShared<S> shared_;
  int group_;          ///< warpgroup
  std::uint32_t own_;  ///< the thread's first place
  Turn<S> turn_{};
  std::uint32_t count_ = 0;  ///< tasks that are done
  RowUnits rows_{};
  float output_[S::kHalves][S::kSums];  ///< of the chunk
};

template <int kPad>
__global__ void __launch_bounds__(RowsShape<kPad>::kThreads, 1)
    rows_kernel(const __grid_constant__ RowsArgs args, const __grid_constant__ RowsMaps maps) {
  using S = RowsShape<kPad>;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const RowsShared<S> shared{shared_address(memory)};
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < S::kUnits; ++slot) {
      barrier_init(shared.full(slot), 1);
      barrier_init(shared.empty(slot), S::kConsumers / 32);
    }
    constexpr int kArrivals = S::kConsumers / 32 * kArrivalsOfWarp;
    barrier_init(shared.queries_full(), kArrivalsOfWarp);
    barrier_init(shared.queries_empty(), kArrivals);
    for (std::uint32_t task = 0; task < 2; ++task) barrier_init(shared.info_empty(task), kArrivals);
    barrier_init_fence();
  }
  __syncthreads();
  RowsTasks tasks(args.plan);
  if (warp >= S::kConsumers / 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::kProducerRegisters));
    if (warp == S::kConsumers / 32) produce_units<S>(args, maps, shared, tasks);
    if (warp == S::kConsumers / 32 + 1) produce_queries<S>(args, &maps.queries, shared, tasks);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::kRegisters));
    Consumer<kPad> consumer(args, shared, warp / 4);
    for (PlannedTask task; tasks.next(task);) consumer.attend(task);
  }
}

template <int kPad>
void launch(const RowsArgs& args, std::int32_t multiprocessors, Stream stream) {
  using S = RowsShape<kPad>;
  const AttentionArgs& attention = args.attention;
  const std::uint64_t dim = static_cast<std::uint64_t>(attention.head_dim);
  const std::uint64_t heads = static_cast<std::uint64_t>(attention.heads);
  const std::uint64_t kv_heads = static_cast<std::uint64_t>(attention.kv_heads);
  const std::uint64_t page = 2 * exact::kPageTokens * dim;
  const std::uint64_t block = static_cast<std::uint64_t>(attention.kv.block_stride);
  const std::uint8_t* keys = attention.kv.pool + attention.kv.layer_offset;
  const std::uint8_t* values = keys + exact::kPageTokens * dim;
  // Past a row's end come zeros. How many tokens and blocks there are is not known here.
  constexpr std::uint64_t kAny = std::uint64_t{1} << 31;
  const RowsMaps maps{byte_map<3>(attention.q, {dim, heads, kAny}, {dim, heads * dim},
                                  {128, static_cast<std::uint32_t>(heads / kv_heads), 1}),
                      byte_map<4>(keys, {dim, exact::kPageTokens, kv_heads, kAny}, {dim, page, block},
                                  {S::kWide ? 128 : kPad, exact::kPageTokens, 1, 1}),
                      byte_map<4>(values, {exact::kPageTokens, dim, kv_heads, kAny},
                                  {exact::kPageTokens, page, block}, {exact::kPageTokens, kPad, 1, 1})};
  const auto kernel = rows_kernel<kPad>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "attention memory");
  kernel<<<static_cast<unsigned>(std::min(args.tasks, multiprocessors)), S::kThreads, S::kSharedBytes,
           stream>>>(args, maps);
  check_launch("attention rows");
}

}  // namespace

void launch_rows(const RowsArgs& args, std::int32_t multiprocessors, Stream stream) {
  const std::int32_t dim = args.attention.head_dim;
  if (dim <= 64) return launch<64>(args, multiprocessors, stream);
  if (dim <= 128) return launch<128>(args, multiprocessors, stream);
  launch<256>(args, multiprocessors, stream);
}

}  // namespace fieldprint::backend::cuda
