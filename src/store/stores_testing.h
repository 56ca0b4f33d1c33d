#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "store/ledger_folder_testing.h"
#include "store/open_ledger.h"
#include "store/temporary_postgres.h"

namespace fieldprint::store {

enum class Kind { kSqlite, kPostgres };

inline std::string kind_name(const ::testing::TestParamInfo<Kind>& info) {
  return info.param == Kind::kSqlite ? "Sqlite" : "Postgres";
}

inline Bytes leaf_of(std::uint64_t i, std::size_t size = 40) {
  Bytes bytes(size);
  for (std::size_t k = 0; k < size; ++k) bytes[k] = static_cast<std::uint8_t>(i * 31 + k * 7 + (i >> 8));
  return bytes;
}

inline const ledger::SignerKey& test_signer() {
  static const ledger::SignerKey key =
      *ledger::SignerKey::make("example.com/ledger", ledger::PrivateKey::from_seed(ledger::Seed{7}));
  return key;
}

/// The one server of this process's tests; nothing where none can be started.
inline TemporaryPostgres* test_postgres(std::string& why) {
  static std::string reason;
  static const std::unique_ptr<TemporaryPostgres> server = TemporaryPostgres::start(reason);
  why = reason;
  return server.get();
}

/// A test of one kind of store, with an empty place for a ledger.
class StoreOfKind : public WithFolder, public ::testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override {
    location_ = path();
    if (GetParam() == Kind::kSqlite) return;
    std::string why;
    TemporaryPostgres* server = test_postgres(why);
    if (server == nullptr) GTEST_SKIP() << why;
    static int number = 0;
    location_ = server->url("ledger_" + std::to_string(++number));
  }

  const std::string& location() const { return location_; }
  std::unique_ptr<LedgerStore> open() const {
    auto store = open_ledger(location_, Access::kAppend);
    EXPECT_TRUE(store.ok()) << store.error().message;
    return store.ok() ? std::move(*store) : nullptr;
  }

 private:
  std::string location_;
};

}  // namespace fieldprint::store
