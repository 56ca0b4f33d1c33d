#include <cooperative_groups.h>

#include "backend/cuda/choose.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/math.cuh"

/// A cluster of blocks chooses the token of one row. Nothing is sorted: top-k and top-p look for the last
/// candidate that stays, by histograms of ever narrower ranges, and all else is maxima and sums of integers,
/// which do not mind the order. The row is read again in every pass; it stays in the second level cache.
namespace fieldprint::backend::cuda {
namespace {

namespace cg = cooperative_groups;

using Wide = unsigned long long;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRowBlocks = 8;                     ///< of a cluster
constexpr int kRowWarps = kRowBlocks * kWarps;    ///< each has a run of the row's tokens, in order
constexpr int kBuckets = 2048;
constexpr int kBucketBits = 11;
constexpr int kOwnBuckets = kBuckets / kRowBlocks;
constexpr int kUnroll = 8;
constexpr int kTokenBits = 20;
constexpr Wide kTokenMask = (Wide{1} << kTokenBits) - 1;
/// Buckets for each halving of the probability: candidates lie within 31 halvings of the largest.
constexpr float kBucketsOfHalving = 64.0F;

/// What the blocks of a cluster tell each other.
struct Exchange {
  std::uint32_t low[kBuckets];   ///< a histogram's sums
  std::uint32_t high[kBuckets];  ///< and what they carry
  ulonglong2 warps[2][kWarps];   ///< in turns, so that one can be read while the next is written
  Wide scan[kOwnBuckets / 32];
  Wide own_sum;  ///< of the buckets that this block adds up
  Wide before;   ///< of the bucket found
  int bucket;
};

/// Order of preference as an integer: larger logit, then smaller token.
__device__ Wide preference(float logit, int token) {
  const std::uint32_t bits = float_to_bits(__fadd_rn(logit, 0.0F));  // -0 counts as 0
  const std::uint32_t ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return static_cast<Wide>(ordered) << kTokenBits | (kTokenMask - static_cast<Wide>(token));
}
__device__ float logit_of(Wide preference) {
  const auto ordered = static_cast<std::uint32_t>(preference >> kTokenBits);
  return bits_to_float((ordered & 0x80000000U) != 0 ? ordered & 0x7FFFFFFFU : ~ordered);
}
__device__ int token_of(Wide preference) { return static_cast<int>(kTokenMask - (preference & kTokenMask)); }

/// A row as one warp sees it.
struct Row {
  const float* logits;
  const std::uint32_t* seen;
  exact::TokenChoice choice;
  int begin;  ///< a multiple of 32
  int end;

  __device__ float penalised(float logit, std::uint32_t seen_word) const {
    if ((seen_word >> (threadIdx.x % 32) & 1U) == 0) return logit;
    return logit > 0.0F ? __fdiv_rn(logit, choice.penalty) : __fmul_rn(logit, choice.penalty);
  }

  /// Calls visit(token, logit) for each of the lane's tokens.
  template <class Visit>
  __device__ void each(const Visit& visit) const {
    const bool penalty = choice.penalty != 1.0F;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int first = begin; first < end; first += 32 * kUnroll) {
      float x[kUnroll];
      std::uint32_t word[kUnroll];
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        const int token = first + 32 * j + lane;
        x[j] = token < end ? logits[token] : 0.0F;
        word[j] = penalty && token < end ? seen[token / 32] : 0;
      }
#pragma unroll
      for (int j = 0; j < kUnroll; ++j) {
        const int token = first + 32 * j + lane;
        if (token < end) visit(token, penalised(x[j], word[j]));
      }
    }
  }
};

struct Candidate {
  Wide preference;
  float halvings;   ///< of the probability, from the largest: 0 or negative
  std::uint32_t p;  ///< 0 for what is no candidate
};

/// The candidates whose preference is at least `cut`.
struct Kept {
  float maximum;
  Wide cut;

  __device__ Candidate candidate(const Row& row, int token, float logit) const {
    Candidate c{preference(logit, token), __fmul_rn(__fsub_rn(logit, maximum), row.choice.scale), 0};
    const float p = isnan(c.halvings) ? 0.0F : exp2(c.halvings);
    if (c.preference >= cut) {
      c.p = static_cast<std::uint32_t>(__float2int_rn(__fmul_rn(p, exact::kProbabilityOne)));
    }
    return c;
  }
};

/// The work of a cluster's threads in step.
class Cluster {
 public:
  __device__ explicit Cluster(Exchange& exchange) : mine_(exchange) {}

  __device__ void sync() const { cg::this_cluster().sync(); }
  __device__ int rank() const { return static_cast<int>(cg::this_cluster().block_rank()); }
  __device__ int warp() const { return static_cast<int>(threadIdx.x) / 32; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }
  /// Of the warps that share the row.
  __device__ int row_warp() const { return rank() * kWarps + warp(); }

  /// The largest of each of two values.
  __device__ ulonglong2 largest(ulonglong2 value) {
    tell(warp_largest(value));
    ulonglong2 best{0, 0};
    for (int i = lane(); i < kRowWarps; i += 32) {
      const ulonglong2 other = told(i);
      best = {max(best.x, other.x), max(best.y, other.y)};
    }
    return warp_largest(best);
  }

  /// A number for each warp of the row, in order: lane i's are 4·i … 4·i + 3.
  struct WarpSums {
    Wide sum[4];
  };
  __device__ WarpSums sums(Wide lane_sum) {
#pragma unroll
    for (int width = 16; width > 0; width /= 2) lane_sum += __shfl_xor_sync(kAllLanes, lane_sum, width);
    tell({lane_sum, 0});
    static_assert(kRowWarps == 4 * 32);
    WarpSums out;
#pragma unroll
    for (int j = 0; j < 4; ++j) out.sum[j] = told(4 * lane() + j).x;
    return out;
  }

  __device__ void clear_histogram() {
    for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kThreads) {
      mine_.low[b] = 0;
      mine_.high[b] = 0;
    }
    __syncthreads();
  }
  __device__ void count(int bucket, std::uint32_t weight) {
    const std::uint32_t before = atomicAdd(&mine_.low[bucket], weight);
    if (before + weight < before) atomicAdd(&mine_.high[bucket], 1U);
  }

  struct Found {
    int bucket;   ///< -1 if all buckets together do not exceed what is wanted
    Wide wanted;  ///< of it
  };
  /// The bucket in which the sum of the buckets, the first first, reaches wanted(sum of all).
  template <class Wanted>
  __device__ Found find(const Wanted& wanted_of);

 private:
  __device__ static ulonglong2 warp_largest(ulonglong2 value) {
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
      value.x = max(value.x, __shfl_xor_sync(kAllLanes, value.x, width));
      value.y = max(value.y, __shfl_xor_sync(kAllLanes, value.y, width));
    }
    return value;
  }

  /// Each warp's value, for all.
  __device__ void tell(ulonglong2 value) {
    turn_ ^= 1;
    if (lane() == 0) mine_.warps[turn_][warp()] = value;
    sync();
  }
  __device__ ulonglong2 told(int row_warp) const {
    return *cg::this_cluster().map_shared_rank(&mine_.warps[turn_][row_warp % kWarps],
                                               static_cast<unsigned>(row_warp / kWarps));
  }

  Exchange& mine_;
  int turn_ = 0;
};

template <class Wanted>
__device__ Cluster::Found Cluster::find(const Wanted& wanted_of) {
  const auto cluster = cg::this_cluster();
  sync();
  const int thread = static_cast<int>(threadIdx.x);
  Wide own = 0;
  if (thread < kOwnBuckets) {
    const int bucket = rank() * kOwnBuckets + thread;
    for (unsigned b = 0; b < kRowBlocks; ++b) {
      own += *cluster.map_shared_rank(&mine_.low[bucket], b);
      own += static_cast<Wide>(*cluster.map_shared_rank(&mine_.high[bucket], b)) << 32;
    }
  }
  Wide upto = own;
#pragma unroll
  for (int width = 1; width < 32; width *= 2) {
    const Wide other = __shfl_up_sync(kAllLanes, upto, static_cast<unsigned>(width));
    if (lane() >= width) upto += other;
  }
  if (thread < kOwnBuckets && lane() == 31) mine_.scan[warp()] = upto;
  __syncthreads();
  for (int w = 0; w < warp() && w < kOwnBuckets / 32; ++w) upto += mine_.scan[w];
  if (thread == kOwnBuckets - 1) mine_.own_sum = upto;
  sync();
  Wide total = 0;
  Wide begin = 0;
  const auto sum_of = [&](int block) {
    return *cluster.map_shared_rank(&mine_.own_sum, static_cast<unsigned>(block));
  };
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b) {
    if (b == rank()) begin = total;
    total += sum_of(b);
  }
  const Wide wanted = wanted_of(total);
  upto += begin;
  if (thread < kOwnBuckets && upto - own < wanted && wanted <= upto) {
    mine_.bucket = rank() * kOwnBuckets + thread;
    mine_.before = upto - own;
  }
  unsigned owner = 0;
  Wide sum = 0;
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b) {
    sum += sum_of(b);
    if (sum < wanted) ++owner;
  }
  sync();
  if (total < wanted) return {-1, 0};
  return {*cluster.map_shared_rank(&mine_.bucket, owner),
          wanted - *cluster.map_shared_rank(&mine_.before, owner)};
}

/// Raises the cut of `kept` to the preference of the last candidate needed for the candidates' number
/// (kByNumber) or probabilities to reach wanted(their sum).
template <bool kByNumber, class Wanted>
__device__ void cut(const Row& row, Kept& kept, Cluster& cluster, const Wanted& wanted_of) {
  const auto weight = [](const Candidate& c) { return kByNumber ? 1U : c.p; };
  const auto first_bucket = [](const Candidate& c) {
    return min(static_cast<int>(__fmul_rn(-c.halvings, kBucketsOfHalving)), kBuckets - 1);
  };
  cluster.clear_histogram();
  row.each([&](int token, float logit) {
    const Candidate c = kept.candidate(row, token, logit);
    if (c.p > 0) cluster.count(first_bucket(c), weight(c));
  });
  Cluster::Found found = cluster.find(wanted_of);
  if (found.bucket < 0) return;
  // First by bucket, then by preference within ever narrower ranges.
  bool by_bucket = true;
  Wide low = 0;
  Wide high = ~Wide{0};
  while (true) {
    ulonglong2 range{0, 0};
    row.each([&](int token, float logit) {
      const Candidate c = kept.candidate(row, token, logit);
      const bool inside =
          by_bucket ? first_bucket(c) == found.bucket : c.preference >= low && c.preference <= high;
      if (c.p == 0 || !inside) return;
      range = {max(range.x, c.preference), max(range.y, ~c.preference)};
    });
    range = cluster.largest(range);
    high = range.x;
    low = ~range.y;
    by_bucket = false;
    if (low == high) break;
    const int shift = max(64 - __clzll(static_cast<long long>(high - low)) - kBucketBits, 0);
    cluster.clear_histogram();
    row.each([&](int token, float logit) {
      const Candidate c = kept.candidate(row, token, logit);
      if (c.p == 0 || c.preference < low || c.preference > high) return;
      cluster.count(static_cast<int>((high - c.preference) >> shift), weight(c));
    });
    found = cluster.find([&](Wide) { return found.wanted; });
    const Wide first = static_cast<Wide>(found.bucket) << shift;
    low = max(low, high - min(high, first + ((Wide{1} << shift) - 1)));
    high -= first;
  }
  kept.cut = low;
}

/// ceil(sum·fraction / 2^32)
__device__ Wide share_of(Wide sum, Wide fraction) {
  const Wide low = sum * fraction;
  const Wide high = __umul64hi(sum, fraction);
  return (high << 32) + (low >> 32) + ((low & 0xFFFFFFFFU) != 0 ? 1 : 0);
}

__device__ Wide inclusive_scan(Wide value) {
#pragma unroll
  for (int width = 1; width < 32; width *= 2) {
    const Wide other = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(width));
    if (static_cast<int>(threadIdx.x) % 32 >= width) value += other;
  }
  return value;
}

/// The warp that has the candidate at `random` / 2^64 of the sum writes it down.
__device__ void draw(const Row& row, const Kept& kept, Cluster& cluster, std::int32_t* out) {
  const std::uint32_t least = static_cast<std::uint32_t>(max(row.choice.least, 1));
  const auto weight = [&](int token, float logit) {
    const Candidate c = kept.candidate(row, token, logit);
    return c.p >= least ? c.p : 0U;
  };
  Wide lane_sum = 0;
  row.each([&](int token, float logit) { lane_sum += weight(token, logit); });
  const Cluster::WarpSums warps = cluster.sums(lane_sum);
  const Wide four = warps.sum[0] + warps.sum[1] + warps.sum[2] + warps.sum[3];
  const Wide upto = inclusive_scan(four);
  const Wide target = __umul64hi(row.choice.random, __shfl_sync(kAllLanes, upto, 31));
  // Where this warp's candidates begin in the sum.
  Wide begin = upto - four;
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    if (j < cluster.row_warp() % 4) begin += warps.sum[j];
  }
  begin = __shfl_sync(kAllLanes, begin, cluster.row_warp() / 4);
  Wide own = warps.sum[0];
#pragma unroll
  for (int j = 1; j < 4; ++j) {
    if (j == cluster.row_warp() % 4) own = warps.sum[j];
  }
  own = __shfl_sync(kAllLanes, own, cluster.row_warp() / 4);
  if (target < begin || target - begin >= own) return;
  Wide rest = target - begin;
  const bool penalty = row.choice.penalty != 1.0F;
  for (int first = row.begin; first < row.end; first += 32) {
    const int token = first + cluster.lane();
    const bool there = token < row.end;
    const std::uint32_t word = penalty ? row.seen[first / 32] : 0;
    const Wide p = there ? weight(token, row.penalised(row.logits[token], word)) : 0;
    const Wide sum = inclusive_scan(p);
    if (p > 0 && sum - p <= rest && rest < sum) *out = token;
    const Wide all = __shfl_sync(kAllLanes, sum, 31);
    if (rest < all) return;
    rest -= all;
  }
}

__global__ void __launch_bounds__(kThreads, 2) choose_rows(ChooseArgs args, int words, int each_warp) {
  let_later_kernels_start();
  wait_for_earlier_kernels();
  __shared__ Exchange exchange;
  Cluster cluster(exchange);
  const std::int64_t r = blockIdx.y;
  const int begin = min(cluster.row_warp() * each_warp, args.vocab);
  const Row row{args.logits + r * args.vocab, args.seen + r * words, args.choices[r], begin,
                min(begin + each_warp, args.vocab)};

  ulonglong2 best{0, 0};
  row.each([&](int token, float logit) {
    if (isnan(logit)) best.y = 1;
    best.x = max(best.x, preference(logit, token));
  });
  best = cluster.largest(best);
  Kept kept{logit_of(best.x), 0};
  const bool refused = best.y != 0 || isinf(kept.maximum);
  if (refused || row.choice.scale == 0.0F) {
    if (cluster.rank() == 0 && threadIdx.x == 0) args.tokens[r] = refused ? exact::kNoToken : token_of(best.x);
  } else {
    if (row.choice.top_k > 0) {
      cut<true>(row, kept, cluster, [&](Wide) { return static_cast<Wide>(row.choice.top_k); });
    }
    if (row.choice.top_p >> 32 == 0) {
      cut<false>(row, kept, cluster, [&](Wide sum) { return share_of(sum, row.choice.top_p); });
    }
    draw(row, kept, cluster, args.tokens + r);
  }
  cluster.sync();  // nobody leaves while the others read what it tells
}

}  // namespace

void choose(const ChooseArgs& args, std::int32_t rows, Stream stream) {
  if (rows == 0) return;
  require(args.vocab > 0 && args.vocab <= 1 << kTokenBits, "choose: a vocabulary of up to 2^20 tokens");
  const int words = exact::seen_words(args.vocab);
  const int each_warp = (words + kRowWarps - 1) / kRowWarps * 32;
  launch_early({dim3(kRowBlocks, static_cast<unsigned>(rows)), kThreads, 0, kRowBlocks}, stream, choose_rows,
               args, words, each_warp);
}

}  // namespace fieldprint::backend::cuda
