#include <cstdint>

#include "backend/cuda/digest.h"

/// SHA-256 is a chain: 64 rounds a block of 64 bytes, block after block. What does not depend on the chain,
/// the message schedule, is computed ahead: the kLanes lanes of a page expand the schedules of kLanes blocks
/// side by side into shared memory, then all of them walk the chain, in step with the other pages of the
/// warp.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kBlockBytes = 64;
constexpr int kBlockWords = kBlockBytes / 4;
constexpr int kRounds = 64;

__constant__ const std::uint32_t kRoundConstants[kRounds] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

struct State {
  std::uint32_t h[8];
};

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
  std::int64_t size;

  __device__ std::int64_t blocks() const { return (size + 8) / kBlockBytes + 1; }

  /// Byte i of the padded message: the page, a one bit, zeros, and the page's length in bits.
  __device__ std::uint32_t padded(std::int64_t i) const {
    if (i < size) return bytes[i];
    if (i == size) return 0x80;
    const std::int64_t from_end = blocks() * kBlockBytes - 1 - i;
    return from_end < 8 ? static_cast<std::uint32_t>((size * 8) >> (8 * from_end)) & 0xFFU : 0U;
  }

  /// The words of a block as they lie in memory.
  __device__ void load(std::int64_t block, std::uint32_t (&words)[kBlockWords]) const {
    if (block >= blocks()) return;
    const std::uint8_t* from = bytes + block * kBlockBytes;
    if ((block + 1) * kBlockBytes <= size && reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBlockWords / 4; ++i) {
        const uint4 quad = reinterpret_cast<const uint4*>(from)[i];
        words[4 * i] = quad.x;
        words[4 * i + 1] = quad.y;
        words[4 * i + 2] = quad.z;
        words[4 * i + 3] = quad.w;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kBlockWords; ++i) {
      const std::int64_t at = block * kBlockBytes + 4 * i;
      words[i] = padded(at) | padded(at + 1) << 8 | padded(at + 2) << 16 | padded(at + 3) << 24;
    }
  }
};

/// The block's message schedule with the round constants added, in order.
__device__ void expand(const std::uint32_t (&words)[kBlockWords], uint4* schedule) {
  std::uint32_t w[kBlockWords];
#pragma unroll
  for (int i = 0; i < kBlockWords; ++i) w[i] = swap_bytes(words[i]);
#pragma unroll
  for (int t = 0; t < kRounds; t += 4) {
    if (t >= kBlockWords) {
#pragma unroll
      for (int i = t; i < t + 4; ++i) {
        w[i % 16] += small_sigma1(w[(i - 2) % 16]) + w[(i - 7) % 16] + small_sigma0(w[(i - 15) % 16]);
      }
    }
    schedule[t / 4] = {w[t % 16] + kRoundConstants[t], w[t % 16 + 1] + kRoundConstants[t + 1],
                       w[t % 16 + 2] + kRoundConstants[t + 2], w[t % 16 + 3] + kRoundConstants[t + 3]};
  }
}

__device__ void round(State& s, std::uint32_t scheduled) {
  std::uint32_t(&v)[8] = s.h;
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

__device__ void compress(State& state, const uint4* schedule) {
  State s = state;
  uint4 next = schedule[0];
#pragma unroll
  for (int t = 0; t < kRounds / 4; ++t) {
    const uint4 now = next;
    if (t + 1 < kRounds / 4) next = schedule[t + 1];
    round(s, now.x);
    round(s, now.y);
    round(s, now.z);
    round(s, now.w);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) state.h[i] += s.h[i];
}

/// One warp for 32 / kLanes pages.
template <int kLanes>
__global__ void __launch_bounds__(32) hash_pages(PageDigestBatch batch) {
  constexpr int kPages = 32 / kLanes;
  // Schedules start four banks apart.
  constexpr int kScheduleQuads = kRounds / 4 + 1;
  __shared__ uint4 schedules[32 * kScheduleQuads];

  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t page = std::int64_t{blockIdx.x} * kPages + threadIdx.x / kLanes;
  const std::int64_t index =
      page < batch.count ? page : batch.count - 1;  // spare lanes hash the last one too
  const Message message{batch.pool + batch.blocks[index / batch.pages] * batch.block_stride +
                            index % batch.pages * batch.page_bytes,
                        batch.page_bytes};
  uint4* mine = schedules + threadIdx.x * kScheduleQuads;
  const uint4* pages = schedules + (threadIdx.x - lane) * kScheduleQuads;

  State state{
      {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
  const std::int64_t blocks = message.blocks();
  std::uint32_t words[kBlockWords] = {};
  message.load(lane, words);
  for (std::int64_t first = 0; first < blocks; first += kLanes) {
    expand(words, mine);
    __syncwarp();
    message.load(first + kLanes + lane, words);
    for (int i = 0; i < kLanes && first + i < blocks; ++i) compress(state, pages + i * kScheduleQuads);
    __syncwarp();
  }

  if (page >= batch.count || lane != 0) return;
  auto* digest = reinterpret_cast<uint4*>(batch.digests + 32 * page);
  digest[0] = {swap_bytes(state.h[0]), swap_bytes(state.h[1]), swap_bytes(state.h[2]),
               swap_bytes(state.h[3])};
  digest[1] = {swap_bytes(state.h[4]), swap_bytes(state.h[5]), swap_bytes(state.h[6]),
               swap_bytes(state.h[7])};
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
