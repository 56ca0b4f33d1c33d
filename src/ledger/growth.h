#pragma once

#include <array>
#include <vector>

#include "ledger/merkle.h"

namespace fieldprint::ledger {

/// A tree to which leaves are added in one go. It holds every perfect subtree that they complete, and the
/// peaks of the tree before: all that inclusion proofs of the added leaves are made of, so that these need no
/// database.
class Growth {
 public:
  explicit Growth(CompactTree before) : before_(std::move(before)), after_(before_) {}

  void append(const Digest& leaf_hash);

  std::uint64_t old_size() const { return before_.size(); }
  std::uint64_t size() const { return after_.size(); }
  const CompactTree& tree() const { return after_; }
  Digest root() const { return after_.root(); }

  /// The hashes completed at a level, 0 … 63; the first has the index old_size() >> level.
  const std::vector<Digest>& completed(int level) const {
    return completed_[static_cast<std::size_t>(level)];
  }

  /// RFC 9162 §2.1.3.1 in the tree of size(), for a leaf that was added: old_size() ≤ index < size().
  std::vector<Digest> inclusion_proof(std::uint64_t index) const;

 private:
  CompactTree before_;
  CompactTree after_;
  std::array<std::vector<Digest>, 64> completed_;
};

}  // namespace fieldprint::ledger
