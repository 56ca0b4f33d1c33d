#include "store/signed_log.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "store/stores_testing.h"

namespace fieldprint::store {
namespace {

// An empty ledger that meets what nobody thought of when something is added.
class ThrowingStore final : public LedgerStore {
 public:
  Result<ledger::Growth> grow(std::span<const LeafView>, const Seal&) override {
    throw std::runtime_error("nobody thought of this");
  }
  Result<std::uint64_t> size() override { return std::uint64_t{0}; }
  Result<std::uint64_t> revision() override { return std::uint64_t{0}; }
  Result<std::vector<Bytes>> leaves(std::uint64_t, std::uint64_t) override { return std::vector<Bytes>(); }
  Result<std::vector<Digest>> nodes(int, std::uint64_t, std::uint64_t) override {
    return std::vector<Digest>();
  }
  Result<std::vector<Digest>> hashes(std::span<const ledger::NodeId>) override {
    return std::vector<Digest>();
  }
  Status keep_checkpoint(std::string_view) override { return {}; }
  Result<std::optional<std::string>> checkpoint() override { return std::optional<std::string>(); }
  Result<std::vector<KeptCheckpoint>> checkpoints(std::uint64_t, int) override {
    return std::vector<KeptCheckpoint>();
  }
  Result<Extent> extent() override { return Extent(); }
  Result<std::optional<ledger::NodeId>> stray_node() override { return std::optional<ledger::NodeId>(); }
  const std::string& name() const override { return name_; }

 private:
  std::string name_ = "throwing";
};

TEST(SignedLogDeathTest, AnExceptionWhileCommittingStopsTheProcessAndStrandsNobody) {
  auto log = *SignedLog::open(std::make_unique<ThrowingStore>(), test_signer());
  EXPECT_DEATH((void)log->append(std::vector<Bytes>{leaf_of(0)}), "nobody thought of this");
}

}  // namespace
}  // namespace fieldprint::store
