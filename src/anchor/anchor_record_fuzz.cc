#include <algorithm>

#include "anchor/registry.h"

// Records that decode encode to the same bytes; a registry takes any leaf, and no leaf makes it forget who
// may what.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint;
  const std::span bytes(data, size);
  const auto same = [&](const anchor::Bytes& again) {
    return std::equal(again.begin(), again.end(), bytes.begin(), bytes.end());
  };
  static const auto log =
      *ledger::SignerKey::make("example.com/ledger", ledger::PrivateKey::from_seed(ledger::Seed{1}));
  if (auto record = anchor::decode_action(bytes)) {
    CHECK(same(anchor::encode(*record)));
    // The same words from who may say them.
    record->ledger = log.verifier().text();
    record->policy = {};
    anchor::sign(*record, log);
    anchor::Registry registry(log.verifier());
    const bool accepted = registry.apply(0, anchor::encode(*record)).ok();
    CHECK(accepted == (registry.entries().size() == 1));
    CHECK(!registry.admit(record->anchor, {}).ok());
  }
  if (auto record = anchor::decode_policy(bytes)) {
    CHECK(same(anchor::encode(*record)));
    (void)anchor::check(record->policy);
  }
  anchor::Registry registry(log.verifier());
  (void)registry.apply(0, bytes);
  // Nobody can sign for the log here but the log.
  CHECK(registry.entries().empty());
  CHECK(registry.size() == 1);
  return 0;
}
