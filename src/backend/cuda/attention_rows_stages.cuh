#pragma once

#include <cuda.h>

#include <algorithm>

#include "backend/cuda/attention_rows.cuh"
#include "backend/cuda/attention_rows.h"
#include "backend/cuda/barrier.cuh"

/// What a block of row items has in shared memory, and the warps that bring it there: one the keys and values
/// of one tile after the other through a ring of units, one the queries of an item and what is to be known of
/// them.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kGroupRows = 64;  ///< query rows of a warpgroup

/// kHead: 64, 128 or 256, at least the head size. The largest heads have outputs for so many registers that
/// two warpgroups compute, and the values come in two halves.
template <int kHead>
struct RowsShape {
  static constexpr int kPad = kHead;
  static constexpr bool kWide = kHead > 128;
  static constexpr int kRows = rows_of_item(kHead);
  static constexpr int kGroups = kRows / kGroupRows;  ///< warpgroups that compute
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kRegisters = kWide ? 232 : 160;  ///< of a consumer
  static constexpr int kProducerRegisters = kWide ? 40 : 32;
  // A block owns as many registers as its threads have at launch, in eights. Whoever asks for more waits
  // forever.
  static_assert(kConsumers * kRegisters + (kThreads - kConsumers) * kProducerRegisters <=
                kThreads * (65536 / kThreads / 8 * 8));
  static constexpr int kOutputs = kPad / 2;  ///< of a lane
  static constexpr int kHalves = kWide ? 2 : 1;
  static constexpr int kSums = kOutputs / kHalves;  ///< of a lane and a half

  static constexpr int kPanels = kWide ? 2 : 1;  ///< of 128 bytes of queries and keys
  static constexpr int kQueryBytes = kPanels * kRows * 128;
  static constexpr int kUnitBytes = kTile * kPad;  ///< keys or values of a tile
  /// Of 16 bytes, of a consuming thread. There is no room for the rows of the largest heads.
  static constexpr int kPlaces = (kWide ? 0 : kOutputs / 4) + 3;
  static constexpr int kPlacesBytes = kConsumers * kPlaces * 16;
  static constexpr int kInfoBytes = kRows * 20 + kPad * 5 + 16;
  static constexpr int kFixedBytes = kQueryBytes + kPlacesBytes + 2 * kInfoBytes + 256;
  static constexpr int kUnits = std::min(8, (227 * 1024 - kFixedBytes) / kUnitBytes);
  static_assert(kUnits >= 3);
  static constexpr int kSharedBytes = kFixedBytes + kUnits * kUnitBytes;
};

/// Addresses in shared memory; the first one is a multiple of 1024.
template <typename S>
struct RowsShared {
  std::uint32_t base;

  __device__ std::uint32_t queries() const { return base; }
  __device__ std::uint32_t unit(int slot) const { return base + S::kQueryBytes + slot * S::kUnitBytes; }
  __device__ std::uint32_t places() const { return unit(S::kUnits); }
  __device__ std::uint32_t info(std::uint32_t task) const {
    return places() + S::kPlacesBytes + task % 2 * S::kInfoBytes;
  }
  __device__ std::uint32_t full(int slot) const {
    return places() + S::kPlacesBytes + 2 * S::kInfoBytes + 8 * slot;
  }
  __device__ std::uint32_t empty(int slot) const { return full(slot) + 8 * S::kUnits; }
  __device__ std::uint32_t queries_full() const { return full(2 * S::kUnits); }
  __device__ std::uint32_t queries_empty() const { return queries_full() + 8; }
  __device__ std::uint32_t info_empty(std::uint32_t task) const { return queries_full() + 16 + task % 2 * 8; }
};

/// What is told of a task, in shared memory, for two tasks in turn: of each row its unit and floor
/// (RowUnits), the tokens that it sees and its own; for results what the sink adds.
template <typename S>
struct RowsInfo {
  std::uint32_t base;

  __device__ std::uint32_t row(int row) const { return base + 16 * row; }
  __device__ std::uint32_t sink_key_scale() const { return row(S::kRows); }
  __device__ std::uint32_t sink_key(int byte) const { return sink_key_scale() + 16 + byte; }
  __device__ std::uint32_t sink_value(int channel) const { return sink_key(S::kPad) + 4 * channel; }
  __device__ std::uint32_t token(int row) const { return sink_value(S::kPad) + 4 * row; }
};

/// Makes the phase wait for `bytes` bytes of copies.
__device__ __forceinline__ void expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

struct PagePlace {
  int byte;
  int row;
  int head;
  int block;
};
__device__ __forceinline__ void copy_page(std::uint32_t to, const CUtensorMap* map, PagePlace at,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(map), "r"(at.byte), "r"(at.row), "r"(at.head), "r"(at.block), "r"(barrier)
      : "memory");
}

struct QueryPlace {
  int byte;
  int head;
  int token;
};
__device__ __forceinline__ void copy_query(std::uint32_t to, const CUtensorMap* map, QueryPlace at,
                                           std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(at.byte), "r"(at.head), "r"(at.token), "r"(barrier)
      : "memory");
}

/// A place in the ring of units: a tile's keys, its values, the keys of the next one.
template <typename S>
struct Turn {
  int slot = 0;
  std::uint32_t parity = 0;

  __device__ void next() {
    if (++slot == S::kUnits) {
      slot = 0;
      parity ^= 1U;
    }
  }
};

/// The tasks that the plan deals to a block.
struct RowsTasks {
  const PlannedTask* upcoming;
  std::int32_t left;

  __device__ explicit RowsTasks(const PlanView& plan) {
    const std::int32_t* starts = plan.row_starts() + blockIdx.x;
    upcoming = plan.row_tasks() + starts[0];
    left = starts[1] - starts[0];
  }

  __device__ bool next(PlannedTask& task) {
    if (left == 0) return false;
    --left;
    task = *upcoming++;
    return true;
  }
};

struct RowsMaps {
  CUtensorMap queries;
  CUtensorMap keys;
  CUtensorMap values;
};

/// Descriptor of rows of kSpan bytes, swizzled over kSpan bytes, in groups of 8 rows, `offset` bytes from
/// `address`; neither carries into the upper word.
template <int kSpan>
__device__ __forceinline__ std::uint64_t descriptor(std::uint32_t address, int offset) {
  constexpr std::uint32_t kUpper = std::uint32_t{kSpan == 128 ? 1 : 2} << 30 | (8 * kSpan) >> 4;
  const std::uint32_t lower = (address >> 4 | 1U << 16) + static_cast<std::uint32_t>(offset >> 4);
  return std::uint64_t{kUpper} << 32 | lower;
}

__device__ __forceinline__ bool elected() {
  std::uint32_t is;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xFFFFFFFF;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(is));
  return is != 0;
}

__device__ __forceinline__ float4 load_shared(std::uint32_t address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address));
  return x;
}
__device__ __forceinline__ float2 load_pair(std::uint32_t address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address));
  return x;
}
__device__ __forceinline__ void store_shared(std::uint32_t address, const float4& x) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(x.x), "f"(x.y), "f"(x.z),
               "f"(x.w)
               : "memory");
}

__device__ __forceinline__ void store_word(std::uint32_t address, std::int32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ std::int32_t load_word(std::uint32_t address) {
  std::int32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}

/// Of the rows of a task. A row that does not exist sees all.
template <typename S>
__device__ void tell_rows(const RowsArgs& args, RowsInfo<S> info, const PlannedTask& task) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t group = args.attention.heads / args.attention.kv_heads;
  const auto tell = [&](int row, std::int32_t step, std::int32_t token, const SeenRange& seen) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(info.row(row)),
                 "r"(float_to_bits(score_unit(step))), "r"(kScoreMagicBits - exact::kScoreSpan / step),
                 "r"(seen.first), "r"(seen.last)
                 : "memory");
    store_word(info.token(row), token);
  };
  for (int row = lane; row < S::kRows; row += 32) {
    const int query = row / group;
    if (query >= task.item.queries) {
      tell(row, exact::kSmallestStep, 0, {0, 0x7FFFFFFF});
      continue;
    }
    const PlannedQuery& planned = args.plan.queries()[task.item.first_query + query];
    const std::int64_t at = static_cast<std::int64_t>(planned.token) * args.attention.heads;
    const std::int32_t step = args.attention.q_step[at + task.kv_head * group + row % group];
    tell(row, step, planned.token, seen_range(args.attention.window, task.item, planned));
  }
}

/// Of the sink, whose values come with their factor.
template <typename S>
__device__ void tell_sink(const RowsArgs& args, RowsInfo<S> info, const PlannedTask& task) {
  const AttentionArgs& attention = args.attention;
  const std::int32_t dim = attention.head_dim;
  const std::int64_t block = args.plan.queries()[task.item.first_query].sink_block;
  const std::uint8_t* page = attention.kv.pool + block * attention.kv.block_stride +
                             attention.kv.layer_offset + std::int64_t{task.kv_head} * page_size(dim);
  const float* factors = attention.scales.sink + 4 * task.kv_head;
  store_word(info.sink_key_scale(), __float_as_int(factors[kSinkKeyScale]));
  for (int channel = static_cast<int>(threadIdx.x) % 32; channel < dim; channel += 32) {
    if (channel < dim / 4)
      store_word(info.sink_key(4 * channel), reinterpret_cast<const int*>(page)[channel]);
    const int value = static_cast<std::int8_t>(page[exact::kPageTokens * (dim + channel)]);
    const float sink = __fmul_rn(__int2float_rn(exact::kLargestWeight * value), factors[kSinkValueScale]);
    store_word(info.sink_value(channel), __float_as_int(sink));
  }
}

/// One warp brings the queries, as soon as those of the task before are done with. What is told of them is
/// there long before.
template <typename S>
__device__ void produce_queries(const RowsArgs& args, const CUtensorMap* map, RowsShared<S> shared,
                                RowsTasks tasks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t group = args.attention.heads / args.attention.kv_heads;
  PlannedTask task;
  for (std::uint32_t n = 0; tasks.next(task); ++n) {
    const RowsInfo<S> info{shared.info(n)};
    barrier_wait(shared.info_empty(n), n / 2 % 2 ^ 1U);
    tell_rows<S>(args, info, task);
    if (task.item.state < 0) tell_sink<S>(args, info, task);
    __syncwarp();
    barrier_wait(shared.queries_empty(), n % 2 ^ 1U);
    if (lane == 0) expect(shared.queries_full(), S::kPanels * task.item.queries * group * 128);
    __syncwarp();
    for (int query = lane; query < task.item.queries; query += 32) {
      const std::int32_t token = load_word(info.token(query * group));
#pragma unroll
      for (int panel = 0; panel < S::kPanels; ++panel) {
        copy_query(shared.queries() + panel * S::kRows * 128 + query * group * 128, map,
                   {128 * panel, task.kv_head * group, token}, shared.queries_full());
      }
    }
    arrive_as_warp(shared.queries_full(), lane == 0);
  }
}

/// The keys or the values of a tile. Keys lie in panels of 128 bytes, as they are swizzled.
template <typename S>
__device__ __forceinline__ void copy_unit(std::uint32_t to, const RowsMaps& maps, bool keys, int kv_head,
                                          const std::int32_t (&pages)[2], std::uint32_t full) {
  if (S::kWide && keys) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      copy_page(to + i * S::kUnitBytes / 4, &maps.keys, {i / 2 * 128, 0, kv_head, pages[i % 2]}, full);
    }
    return;
  }
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    copy_page(to + p * S::kUnitBytes / 2, keys ? &maps.keys : &maps.values, {0, 0, kv_head, pages[p]}, full);
  }
}

/// Another one the keys and values, whatever the queries do.
template <typename S>
__device__ void produce_units(const RowsArgs& args, const RowsMaps& maps, RowsShared<S> shared,
                              RowsTasks tasks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Turn<S> turn;
  PlannedTask task;
  while (tasks.next(task)) {
    const std::int32_t* blocks = args.plan.blocks() + task.item.block;
    const std::int32_t first = task.item.first_tile;
    const int units = 2 * (task.item.end_tile - first);
    std::int32_t block = 0;
    for (int unit = 0; unit < units; ++unit) {
      // A lane knows the block of a page.
      const int page = unit / 2 * 2;
      if (unit % 2 == 0 && page % 32 == 0 && page + lane < units) block = blocks[2 * first + page + lane];
      const std::int32_t pages[2] = {__shfl_sync(kAllLanes, block, page % 32),
                                     __shfl_sync(kAllLanes, block, page % 32 + 1)};
      if (lane == 0) {
        const std::uint32_t to = shared.unit(turn.slot);
        const std::uint32_t full = shared.full(turn.slot);
        barrier_wait(shared.empty(turn.slot), turn.parity ^ 1U);
        expect(full, S::kUnitBytes);
        copy_unit<S>(to, maps, unit % 2 == 0, task.kv_head, pages, full);
        barrier_arrive(full);
      }
      __syncwarp();
      turn.next();
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::cuda
