#pragma once

#include <cstdint>

namespace fieldprint::sampler {

/// 64 random bits for (seed, position): Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers:
/// as easy as 1, 2, 3, SC 2011) with the seed as key and the position as counter. The first two words, low
/// first.
std::uint64_t philox(std::uint64_t seed, std::uint64_t position);

}  // namespace fieldprint::sampler
