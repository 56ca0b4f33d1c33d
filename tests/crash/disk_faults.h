#pragma once

#include <cstdint>
#include <string>

namespace fieldprint::crash {

/// What a number of trials came to.
struct Tally {
  std::string what;
  std::int64_t tried = 0;
  std::int64_t answered = 0;  ///< as it must be: survived, or detected
  std::int64_t lost = 0;      ///< acknowledged records that were not there afterwards
  std::string problem = {};   ///< of the first trial that was not answered
};

/// The power fails between any two calls to the file system while a ledger grows, is closed and opened again;
/// every `stride`-th moment, four ways of losing what was not flushed, of which those that leave different
/// disks are tried.
/// With `lying` the disk flushes nothing that it is asked to, and records must be found to be lost: the
/// trials notice.
Tally cut_power(const std::string& folder, std::size_t stride, std::uint64_t seed, bool lying);

/// A write finds the disk full, or a flush fails, at every `stride`-th call that can fail; then the power
/// fails, too, at some time and at the end.
Tally fail_disk(const std::string& folder, std::size_t stride, std::uint64_t seed);

}  // namespace fieldprint::crash
