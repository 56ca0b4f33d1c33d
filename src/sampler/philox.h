#pragma once

#include <array>
#include <cstdint>

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011).
namespace fieldprint::sampler {

/// The four words of the block `counter` under `key`.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

/// 64 random bits for (seed, position): the seed is the key and the position the counter, low words first; of
/// the block the first two words, low first.
std::uint64_t philox(std::uint64_t seed, std::uint64_t position);

}  // namespace fieldprint::sampler
