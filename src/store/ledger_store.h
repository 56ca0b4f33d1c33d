#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "ledger/checkpoint.h"
#include "ledger/growth.h"
#include "ledger/merkle.h"

namespace fieldprint::store {

using Bytes = std::vector<std::uint8_t>;
using LeafView = std::span<const std::uint8_t>;

/// What a store says of itself, read at one moment.
struct Extent {
  std::uint64_t stated = 0;  ///< the size that it states
  std::uint64_t leaves = 0;  ///< one more than the last leaf's index
  std::uint64_t hashes = 0;  ///< the same for leaf hashes
};

struct KeptCheckpoint {
  std::uint64_t size = 0;
  std::string note;
};

/// A tree that is about to be committed.
struct Growing {
  std::optional<std::string> last;  ///< the last checkpoint kept, which states the tree that grew
  std::uint64_t size = 0;
  Digest root{};
  ledger::NodeReader nodes;  ///< hashes of complete subtrees
};

/// Gives the signed checkpoint of such a tree.
using Seal = std::function<Result<std::string>(const Growing& growing)>;

/// Where a ledger lives: leaves, the hashes of all perfect subtrees, and the checkpoints given out. Leaves
/// are only ever added. Safe to call from several threads, and from several processes. A database that fails,
/// is full, locked or damaged gives an environment error; an index that is not there is the caller's.
class LedgerStore {
 public:
  virtual ~LedgerStore() = default;

  /// Adds leaves and, if `seal` is set, the checkpoint that it gives for the grown tree, in one transaction.
  /// When it returns, all of it survives a crash of the process or the machine; if it fails, none of it is
  /// there, save that a database server that is lost at the very end may have kept it, which the error says.
  /// With `seal`, the tree that grows is what the last checkpoint kept states; anything else is damage, so
  /// that nothing is sealed that came from elsewhere.
  virtual Result<ledger::Growth> grow(std::span<const LeafView> leaves, const Seal& seal) = 0;
  /// Returns when nothing that this object began to add is under way any more, not even on a server that was
  /// lost meanwhile: of an append that failed, what is not there then never will be.
  virtual Status settle() = 0;

  virtual Result<std::uint64_t> size() = 0;
  /// A number that changes whenever the ledger has grown; it may change without. At once when this object
  /// made it grow or the ledger is a file; where it is on a server, another's growth is heard of a moment
  /// after its commit, and after bounds::kMaxLedgerSilence at the latest. Cheap enough to be asked for
  /// between any two steps: there is no round trip. Read it before what it is to vouch for.
  virtual Result<std::uint64_t> revision() = 0;
  /// What revision() would say, by memory alone: it waits for no read, no server and no lock that is held
  /// during one. Nothing where only revision() can tell.
  virtual std::optional<std::uint64_t> glance() = 0;
  /// Leaves [begin, end), up to the first that is not there.
  virtual Result<std::vector<Bytes>> leaves(std::uint64_t begin, std::uint64_t end) = 0;
  /// Hashes [begin, end) of a level, up to the first that is not there.
  virtual Result<std::vector<Digest>> nodes(int level, std::uint64_t begin, std::uint64_t end) = 0;
  /// The hashes of these complete perfect subtrees.
  virtual Result<std::vector<Digest>> hashes(std::span<const ledger::NodeId> ids) = 0;

  /// Keeps a signed checkpoint of this ledger, durably. Refused if its size or root is not the ledger's, or
  /// if it is older than the last one kept and not kept itself. Where one of the same size is kept already,
  /// the signatures of both are. What they sign is the caller's business.
  virtual Status keep_checkpoint(std::string_view note) = 0;
  /// The last checkpoint kept, if there is one.
  virtual Result<std::optional<std::string>> checkpoint() = 0;
  /// At most `limit` checkpoints of at least this size, in order.
  virtual Result<std::vector<KeptCheckpoint>> checkpoints(std::uint64_t from, int limit) = 0;

  virtual Result<Extent> extent() = 0;
  /// The first stored hash that is of no complete subtree of the ledger, if there is one; reads all of them.
  virtual Result<std::optional<ledger::NodeId>> stray_node() = 0;
  /// For messages: the file or the database.
  virtual const std::string& name() const = 0;

  /// The index of the first of the leaves added.
  Result<std::uint64_t> append(std::span<const Bytes> leaves);
  Result<Bytes> leaf(std::uint64_t index);
  Result<Digest> node(ledger::NodeId id);
  Result<Digest> leaf_hash(std::uint64_t index) { return node({0, index}); }
  Result<std::optional<std::string>> checkpoint_at(std::uint64_t size);
  Result<Digest> root_at(std::uint64_t size);
  Result<std::vector<Digest>> inclusion_proof(std::uint64_t index, std::uint64_t size);
  Result<std::vector<Digest>> consistency_proof(std::uint64_t old_size, std::uint64_t new_size);
  /// The error of a ledger of `size` leaves of which its last checkpoint covers so many.
  Error uncovered(std::uint64_t size, std::uint64_t covered) const;
  /// store/audit.h without keys; refuted if anything is wrong.
  Status audit();

 protected:
  Error damaged(std::string_view what) const;
  Error no_node(ledger::NodeId id) const;
  /// The tree as the store states it, if what it states fits together: sizes, peaks, the last checkpoint.
  Result<ledger::CompactTree> check_state();
  /// The tree of `size` leaves, from stored hashes.
  Result<ledger::CompactTree> load_tree(std::uint64_t size, const ledger::NodeReader& nodes) const;
  /// The same where `last`, the last checkpoint kept, must state this tree: `cached` if that is it.
  Result<ledger::CompactTree> covered_tree(std::uint64_t size, const std::optional<std::string>& last,
                                           const ledger::CompactTree& cached,
                                           const ledger::NodeReader& nodes) const;
  /// Whether size and root are those of this ledger, which has `size` leaves.
  Status check_checkpoint(const ledger::Checkpoint& checkpoint, std::uint64_t size);
};

/// The limit of one leaf.
Status check_leaves(std::span<const LeafView> leaves);

/// The checkpoint that a note states; signatures are not looked at.
Result<ledger::Checkpoint> read_checkpoint(std::string_view note);

/// A note to keep in place of `kept`, if there is one: the signatures of both.
Result<std::string> merge_notes(const std::optional<std::string>& kept, std::string_view note);

}  // namespace fieldprint::store
