#include "ledger/merkle.h"

#include <bit>

namespace fieldprint::ledger {
namespace {

// The largest power of two below n; n ≥ 2. RFC 9162 calls it k.
std::uint64_t split_of(std::uint64_t n) { return std::bit_floor(n - 1); }

// The hash over leaves [begin, end), where begin is a multiple of the smallest power of two ≥ end − begin.
Result<Digest> range_hash(std::uint64_t begin, std::uint64_t end, const NodeReader& node) {
  const std::uint64_t count = end - begin;
  if (std::has_single_bit(count)) {
    const int level = std::countr_zero(count);
    return node({level, begin >> level});
  }
  const std::uint64_t middle = begin + split_of(count);
  auto left = range_hash(begin, middle, node);
  if (!left) return left;
  auto right = range_hash(middle, end, node);
  if (!right) return right;
  return node_hash(*left, *right);
}

Status append_range(std::vector<Digest>& proof, std::uint64_t begin, std::uint64_t end,
                    const NodeReader& node) {
  auto hash = range_hash(begin, end, node);
  if (!hash) return hash.error();
  proof.push_back(*hash);
  return {};
}

// PATH(index − begin, D[begin:end]).
Status append_path(std::vector<Digest>& proof, std::uint64_t index, std::uint64_t begin, std::uint64_t end,
                   const NodeReader& node) {
  if (end - begin == 1) return {};
  const std::uint64_t middle = begin + split_of(end - begin);
  if (index < middle) {
    if (Status status = append_path(proof, index, begin, middle, node); !status) return status;
    return append_range(proof, middle, end, node);
  }
  if (Status status = append_path(proof, index, middle, end, node); !status) return status;
  return append_range(proof, begin, middle, node);
}

// SUBPROOF(old − begin, D[begin:end], whole): `whole` says that D[0:old] is a subtree the verifier knows
// already.
Status append_subproof(std::vector<Digest>& proof, std::uint64_t old_size, std::uint64_t begin,
                       std::uint64_t end, bool whole, const NodeReader& node) {
  if (old_size == end) return whole ? Status() : append_range(proof, begin, end, node);
  const std::uint64_t middle = begin + split_of(end - begin);
  if (old_size <= middle) {
    if (Status status = append_subproof(proof, old_size, begin, middle, whole, node); !status) return status;
    return append_range(proof, middle, end, node);
  }
  if (Status status = append_subproof(proof, old_size, middle, end, false, node); !status) return status;
  return append_range(proof, begin, middle, node);
}

Error wrong_length(std::string_view kind, bool too_long) {
  return refuted(
      fmt::format("the {} proof is too {} for these tree sizes", kind, too_long ? "long" : "short"));
}

}  // namespace

Digest leaf_hash(std::span<const std::uint8_t> leaf) {
  constexpr std::uint8_t kPrefix[] = {0};
  return sha256_of({kPrefix, leaf});
}

Digest node_hash(const Digest& left, const Digest& right) {
  constexpr std::uint8_t kPrefix[] = {1};
  return sha256_of({kPrefix, left, right});
}

Digest empty_root() { return sha256(std::string_view()); }

Digest root_of(std::span<const Digest> leaf_hashes) {
  CompactTree tree;
  for (const Digest& hash : leaf_hashes) tree.append(hash);
  return tree.root();
}

Result<CompactTree> CompactTree::load(std::uint64_t size, const NodeReader& node) {
  CompactTree tree;
  tree.size_ = size;
  std::uint64_t begin = 0;
  for (int level = 63; level >= 0; --level) {
    if ((size >> level & 1) == 0) continue;
    auto peak = node({level, begin >> level});
    if (!peak) return peak.error();
    tree.peaks_.push_back(*peak);
    begin += std::uint64_t{1} << level;
  }
  return tree;
}

void CompactTree::append(const Digest& leaf_hash, const NodeWriter& completed) {
  NodeId id = {0, size_};
  Digest hash = leaf_hash;
  if (completed) completed(id, hash);
  // Each set low bit of the old size is a left sibling that now gets its right one: binary addition with
  // carry.
  for (; (size_ >> id.level & 1) != 0; ++id.level) {
    hash = node_hash(peaks_.back(), hash);
    peaks_.pop_back();
    id.index >>= 1;
    if (completed) completed({id.level + 1, id.index}, hash);
  }
  peaks_.push_back(hash);
  ++size_;
}

Digest CompactTree::root() const {
  if (peaks_.empty()) return empty_root();
  Digest hash = peaks_.back();
  for (std::size_t i = peaks_.size() - 1; i-- > 0;) hash = node_hash(peaks_[i], hash);
  return hash;
}

std::optional<Digest> CompactTree::peak(NodeId id) const {
  const bool is_peak =
      id.level >= 0 && id.level < 64 && (size_ >> id.level & 1) != 0 && id.index + 1 == size_ >> id.level;
  if (!is_peak) return std::nullopt;
  const std::uint64_t larger = id.level == 63 ? 0 : size_ >> (id.level + 1);
  return peaks_[static_cast<std::size_t>(std::popcount(larger))];
}

Result<Digest> root_at(std::uint64_t size, const NodeReader& node) {
  if (size == 0) return empty_root();
  return range_hash(0, size, node);
}

Result<std::vector<Digest>> inclusion_proof(std::uint64_t index, std::uint64_t size, const NodeReader& node) {
  if (index >= size) {
    return caller_error(
        fmt::format("no leaf {} in a tree of {} leaves: the index must be below the size", index, size));
  }
  std::vector<Digest> proof;
  if (Status status = append_path(proof, index, 0, size, node); !status) return status.error();
  return proof;
}

Result<std::vector<Digest>> consistency_proof(std::uint64_t old_size, std::uint64_t new_size,
                                              const NodeReader& node) {
  if (old_size > new_size) {
    return caller_error(fmt::format("a tree of {} leaves cannot precede one of {}", old_size, new_size));
  }
  if (old_size == 0) {
    return caller_error(
        "a consistency proof starts at a tree of at least one leaf; nothing precedes the empty tree");
  }
  std::vector<Digest> proof;
  if (old_size == new_size) return proof;
  if (Status status = append_subproof(proof, old_size, 0, new_size, true, node); !status)
    return status.error();
  return proof;
}

Status verify_inclusion(const Digest& leaf_hash, std::uint64_t index, std::uint64_t size,
                        std::span<const Digest> proof, const Digest& root) {
  if (index >= size) return refuted(fmt::format("leaf index {} is not below the tree size {}", index, size));
  std::uint64_t fn = index;  // names as in the RFC
  std::uint64_t sn = size - 1;
  Digest hash = leaf_hash;
  for (const Digest& sibling : proof) {
    if (sn == 0) return wrong_length("inclusion", true);
    if ((fn & 1) != 0 || fn == sn) {
      hash = node_hash(sibling, hash);
      while ((fn & 1) == 0 && fn != 0) {
        fn >>= 1;
        sn >>= 1;
      }
    } else {
      hash = node_hash(hash, sibling);
    }
    fn >>= 1;
    sn >>= 1;
  }
  if (sn != 0) return wrong_length("inclusion", false);
  if (hash != root) {
    return refuted(
        fmt::format("the inclusion proof leads to root {}, not to {}", to_hex(hash), to_hex(root)));
  }
  return {};
}

Status verify_consistency(std::uint64_t old_size, const Digest& old_root, std::uint64_t new_size,
                          const Digest& new_root, std::span<const Digest> proof) {
  if (old_size > new_size) {
    return refuted(fmt::format("the old tree has {} leaves, more than the new one's {}", old_size, new_size));
  }
  if (old_size == 0) return refuted("no consistency proof starts at the empty tree");
  if (old_size == new_size && old_root != new_root) return refuted("two different roots for one tree size");
  if (old_size == new_size) return proof.empty() ? Status() : wrong_length("consistency", true);

  std::uint64_t fn = old_size - 1;
  std::uint64_t sn = new_size - 1;
  const int shift = std::countr_one(fn);
  fn >>= shift;
  sn >>= shift;
  // An old tree that is a perfect subtree of the new one is left out of the proof.
  std::size_t next = 0;
  if (proof.empty()) return wrong_length("consistency", false);
  Digest old_hash = fn == 0 ? old_root : proof[next++];
  Digest new_hash = old_hash;
  for (; next < proof.size(); ++next) {
    const Digest& sibling = proof[next];
    if (sn == 0) return wrong_length("consistency", true);
    if ((fn & 1) != 0 || fn == sn) {
      old_hash = node_hash(sibling, old_hash);
      new_hash = node_hash(sibling, new_hash);
      while ((fn & 1) == 0 && fn != 0) {
        fn >>= 1;
        sn >>= 1;
      }
    } else {
      new_hash = node_hash(new_hash, sibling);
    }
    fn >>= 1;
    sn >>= 1;
  }
  if (sn != 0) return wrong_length("consistency", false);
  if (old_hash != old_root) return refuted("the consistency proof does not lead to the old root");
  if (new_hash != new_root) return refuted("the consistency proof does not lead to the new root");
  return {};
}

}  // namespace fieldprint::ledger
