#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"

/// The Merkle tree of RFC 9162 §2.1 over SHA-256 (the same tree as RFC 6962).
namespace fieldprint::ledger {

/// The root of a perfect subtree: the hash over leaves [index·2^level, (index+1)·2^level). Level 0 holds the
/// leaf hashes. Such a node never changes once its leaves exist, so it may be stored and cached.
struct NodeId {
  int level = 0;  ///< 0 … 63
  std::uint64_t index = 0;
  bool operator==(const NodeId&) const = default;
};

using NodeReader = std::function<Result<Digest>(NodeId)>;
using NodeWriter = std::function<void(NodeId, const Digest&)>;

Digest leaf_hash(std::span<const std::uint8_t> leaf);       ///< SHA-256(0x00 || leaf)
Digest node_hash(const Digest& left, const Digest& right);  ///< SHA-256(0x01 || left || right)
Digest empty_root();                                        ///< SHA-256 of nothing
Digest root_of(std::span<const Digest> leaf_hashes);        ///< MTH(D[n]) of RFC 9162 §2.1.1

/// A tree that grows by one leaf at a time and keeps O(log n) hashes.
class CompactTree {
 public:
  CompactTree() = default;
  /// Takes up a tree of `size` leaves from its stored perfect subtrees.
  static Result<CompactTree> load(std::uint64_t size, const NodeReader& node);

  std::uint64_t size() const { return size_; }
  /// Adds a leaf and hands every perfect subtree that it completes, its leaf hash first, to `completed` if
  /// set.
  void append(const Digest& leaf_hash, const NodeWriter& completed = {});
  Digest root() const;
  /// The hash of a peak: a perfect subtree whose parent is not complete; nothing for any other subtree.
  std::optional<Digest> peak(NodeId id) const;

 private:
  std::uint64_t size_ = 0;
  std::vector<Digest>
      peaks_;  ///< roots of the perfect subtrees, largest first: one for each bit set in size_
};

/// The root of the first `size` leaves.
Result<Digest> root_at(std::uint64_t size, const NodeReader& node);

/// RFC 9162 §2.1.3.1. Needs index < size.
Result<std::vector<Digest>> inclusion_proof(std::uint64_t index, std::uint64_t size, const NodeReader& node);

/// RFC 9162 §2.1.4.1. Needs 0 < old_size ≤ new_size; empty if the sizes are equal.
Result<std::vector<Digest>> consistency_proof(std::uint64_t old_size, std::uint64_t new_size,
                                              const NodeReader& node);

/// RFC 9162 §2.1.3.2: refuted unless the leaf is at `index` in the tree of `size` leaves with that root.
Status verify_inclusion(const Digest& leaf_hash, std::uint64_t index, std::uint64_t size,
                        std::span<const Digest> proof, const Digest& root);

/// RFC 9162 §2.1.4.2: refuted unless the old tree is a prefix of the new one. The RFC knows no proof from the
/// empty tree, so an old size of 0 is refuted; equal sizes need equal roots and an empty proof.
Status verify_consistency(std::uint64_t old_size, const Digest& old_root, std::uint64_t new_size,
                          const Digest& new_root, std::span<const Digest> proof);

}  // namespace fieldprint::ledger
