#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "ledger/merkle.h"

namespace fieldprint::store {

using Bytes = std::vector<std::uint8_t>;

/// Where a ledger lives: leaves, the hashes of all perfect subtrees, and the checkpoints given out. Leaves
/// are only ever added. Safe to call from several threads. A database that fails, is full, locked or damaged
/// gives an environment error; an index that is not there is the caller's.
class LedgerStore {
 public:
  virtual ~LedgerStore() = default;

  /// Adds leaves in one transaction and gives the index of the first. When it returns, all of them survive a
  /// crash of the process or the machine; if it fails, none of them is there.
  virtual Result<std::uint64_t> append(std::span<const Bytes> leaves) = 0;
  virtual Result<std::uint64_t> size() = 0;
  virtual Result<Bytes> leaf(std::uint64_t index) = 0;
  /// The hash of a perfect subtree that is complete; level 0 gives leaf hashes.
  virtual Result<Digest> node(ledger::NodeId id) = 0;

  /// Keeps a signed checkpoint of this ledger, durably. Refused if its size or root is not the ledger's, or
  /// if it is older than the last one kept. The signature is the caller's business.
  virtual Status keep_checkpoint(std::string_view note) = 0;
  /// The last checkpoint kept, if there is one.
  virtual Result<std::optional<std::string>> checkpoint() = 0;

  /// Reads everything and recomputes every hash. Refuted, with the place, if anything disagrees.
  virtual Status audit() = 0;

  Result<Digest> leaf_hash(std::uint64_t index) { return node({0, index}); }
  Result<Digest> root_at(std::uint64_t size) { return ledger::root_at(size, reader()); }
  Result<std::vector<Digest>> inclusion_proof(std::uint64_t index, std::uint64_t size) {
    return ledger::inclusion_proof(index, size, reader());
  }
  Result<std::vector<Digest>> consistency_proof(std::uint64_t old_size, std::uint64_t new_size) {
    return ledger::consistency_proof(old_size, new_size, reader());
  }

 private:
  ledger::NodeReader reader() {
    return [this](ledger::NodeId id) { return node(id); };
  }
};

}  // namespace fieldprint::store
