#include <cstdint>

#include "backend/cuda/digest.h"
#include "backend/sha256_constants.h"

/// SHA-256 is a chain: 64 rounds a block of 64 bytes, block after block. What does not depend on the chain,
/// the message schedule, is computed ahead: the kLanes lanes of a page expand the schedules of kLanes blocks
/// side by side into shared memory, then all of them walk the chain, in step with the other pages of the
/// warp.
///
/// A chain takes long, and beside it the step goes on: a warp has no more registers and shared memory than
/// the blocks of w8r_large_kernel leave free, each of which takes nearly all of a multiprocessor. With more,
/// every such kernel would wait for the chain to end.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kBlockBytes = 64;
constexpr int kBlockWords = kBlockBytes / 4;
constexpr int kRounds = 64;

__constant__ const Sha256Constants kConstants = kSha256Constants;

__device__ std::uint32_t rotate(std::uint32_t x, int right) { return __funnelshift_r(x, x, right); }
__device__ std::uint32_t swap_bytes(std::uint32_t x) { return __byte_perm(x, 0, 0x0123); }

__device__ std::uint32_t small_sigma0(std::uint32_t x) { return rotate(x, 7) ^ rotate(x, 18) ^ (x >> 3); }
__device__ std::uint32_t small_sigma1(std::uint32_t x) { return rotate(x, 17) ^ rotate(x, 19) ^ (x >> 10); }
__device__ std::uint32_t big_sigma0(std::uint32_t x) { return rotate(x, 2) ^ rotate(x, 13) ^ rotate(x, 22); }
__device__ std::uint32_t big_sigma1(std::uint32_t x) { return rotate(x, 6) ^ rotate(x, 11) ^ rotate(x, 25); }
__device__ std::uint32_t choose(std::uint32_t x, std::uint32_t y, std::uint32_t z) {
  return (x & y) ^ (~x & z);
}
__device__ std::uint32_t majority(std::uint32_t x, std::uint32_t y, std::uint32_t z) {
  return (x & y) ^ (x & z) ^ (y & z);
}

/// A page as a padded message.
struct Message {
  const std::uint8_t* bytes;
  int size;

  __device__ int blocks() const { return (size + 8) / kBlockBytes + 1; }

  /// Byte i of the padded message: the page, a one bit, zeros, and the page's length in bits.
  __device__ std::uint32_t padded(int i) const {
    if (i < size) return bytes[i];
    if (i == size) return 0x80;
    const int from_end = blocks() * kBlockBytes - 1 - i;
    return from_end < 8 ? static_cast<std::uint32_t>((std::uint64_t{8} * size) >> (8 * from_end)) & 0xFFU
                        : 0U;
  }
};

/// What a lane keeps in shared memory. Those of eight neighbours begin in different banks.
struct LaneRoom {
  uint4 schedule[kRounds / 4];
  uint4 block[kBlockWords / 4];  ///< the next block, as it lies in memory
  uint4 chain[2];                ///< all lanes of a page have the same
  uint4 apart;
};

/// Begins to bring a block of the message into the lane's room.
__device__ void fetch(const Message& message, int block, LaneRoom& room) {
  if (block >= message.blocks()) return;
  const std::uint8_t* from = message.bytes + std::int64_t{block} * kBlockBytes;
  if ((block + 1) * kBlockBytes <= message.size && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(room.block));
#pragma unroll
    for (int i = 0; i < kBlockWords / 4; ++i) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + 16 * i), "l"(from + 16 * i)
                   : "memory");
    }
    return;
  }
  auto* words = reinterpret_cast<std::uint32_t*>(room.block);
  for (int i = 0; i < kBlockWords; ++i) {
    const int at = block * kBlockBytes + 4 * i;
    words[i] = message.padded(at) | message.padded(at + 1) << 8 | message.padded(at + 2) << 16 |
               message.padded(at + 3) << 24;
  }
}

/// The message schedule of the fetched block, with the round constants added, in order.
__device__ void expand(LaneRoom& room) {
  asm volatile("cp.async.wait_all;" ::: "memory");
  std::uint32_t w[kBlockWords];
#pragma unroll
  for (int i = 0; i < kBlockWords / 4; ++i) {
    const uint4 quad = room.block[i];
    w[4 * i] = swap_bytes(quad.x);
    w[4 * i + 1] = swap_bytes(quad.y);
    w[4 * i + 2] = swap_bytes(quad.z);
    w[4 * i + 3] = swap_bytes(quad.w);
  }
#pragma unroll
  for (int t = 0; t < kRounds; t += 4) {
    if (t >= kBlockWords) {
#pragma unroll
      for (int i = t; i < t + 4; ++i) {
        w[i % 16] += small_sigma1(w[(i - 2) % 16]) + w[(i - 7) % 16] + small_sigma0(w[(i - 15) % 16]);
      }
    }
    room.schedule[t / 4] = {w[t % 16] + kConstants.round[t], w[t % 16 + 1] + kConstants.round[t + 1],
                            w[t % 16 + 2] + kConstants.round[t + 2], w[t % 16 + 3] + kConstants.round[t + 3]};
  }
}

__device__ void round(std::uint32_t (&v)[8], std::uint32_t scheduled) {
  const std::uint32_t first = v[7] + scheduled + big_sigma1(v[4]) + choose(v[4], v[5], v[6]);
  const std::uint32_t second = big_sigma0(v[0]) + majority(v[0], v[1], v[2]);
  v[7] = v[6];
  v[6] = v[5];
  v[5] = v[4];
  v[4] = v[3] + first;
  v[3] = v[2];
  v[2] = v[1];
  v[1] = v[0];
  v[0] = first + second;
}

/// One block of the chain.
__device__ void compress(uint4 (&chain)[2], const uint4* schedule) {
  uint4 upper = chain[0];
  uint4 lower = chain[1];
  std::uint32_t v[8] = {upper.x, upper.y, upper.z, upper.w, lower.x, lower.y, lower.z, lower.w};
  uint4 next = schedule[0];
#pragma unroll
  for (int t = 0; t < kRounds / 4; ++t) {
    const uint4 now = next;
    if (t + 1 < kRounds / 4) next = schedule[t + 1];
    round(v, now.x);
    round(v, now.y);
    round(v, now.z);
    round(v, now.w);
  }
  upper = chain[0];
  chain[0] = {upper.x + v[0], upper.y + v[1], upper.z + v[2], upper.w + v[3]};
  lower = chain[1];
  chain[1] = {lower.x + v[4], lower.y + v[5], lower.z + v[6], lower.w + v[7]};
}

/// One warp for 32 / kLanes pages.
template <int kLanes>
__global__ void __maxnreg__(32) hash_pages(PageDigestBatch batch) {
  constexpr int kPages = 32 / kLanes;
  __shared__ LaneRoom rooms[32];

  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t page = std::int64_t{blockIdx.x} * kPages + threadIdx.x / kLanes;
  const std::int64_t index =
      page < batch.count ? page : batch.count - 1;  // spare lanes hash the last one too
  const Message message{batch.pool + batch.blocks[index / batch.pages] * batch.block_stride +
                            index % batch.pages * batch.page_bytes,
                        static_cast<int>(batch.page_bytes)};
  LaneRoom& mine = rooms[threadIdx.x];
  const LaneRoom* pages = rooms + (threadIdx.x - lane);

  constexpr Sha256Constants kStart = kSha256Constants;
  mine.chain[0] = {kStart.initial[0], kStart.initial[1], kStart.initial[2], kStart.initial[3]};
  mine.chain[1] = {kStart.initial[4], kStart.initial[5], kStart.initial[6], kStart.initial[7]};
  fetch(message, lane, mine);
  for (int first = 0; first < message.blocks(); first += kLanes) {
    expand(mine);
    __syncwarp();
    fetch(message, first + kLanes + lane, mine);
    for (int i = 0; i < kLanes && first + i < message.blocks(); ++i) {
      compress(mine.chain, pages[i].schedule);
    }
    __syncwarp();
  }

  if (page >= batch.count || lane != 0) return;
  auto* digest = reinterpret_cast<uint4*>(batch.digests + 32 * page);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 words = mine.chain[half];
    digest[half] = {swap_bytes(words.x), swap_bytes(words.y), swap_bytes(words.z), swap_bytes(words.w)};
  }
}

template <int kLanes>
void launch(const PageDigestBatch& batch, Stream stream) {
  constexpr int kPages = 32 / kLanes;
  hash_pages<kLanes><<<static_cast<unsigned>((batch.count + kPages - 1) / kPages), 32, 0, stream>>>(batch);
}

}  // namespace

/// With a warp for every scheduler the chain is what takes time; with more, the work is.
std::int64_t page_digests_at_once() { return std::int64_t{multiprocessors()} * 4 * 8; }

void page_digests(const PageDigestBatch& batch, Stream stream) {
  if (batch.count == 0) return;
  if (batch.count > page_digests_at_once()) {
    launch<1>(batch, stream);
  } else {
    launch<4>(batch, stream);
  }
  check_launch("page_digests");
}

}  // namespace fieldprint::backend::cuda
