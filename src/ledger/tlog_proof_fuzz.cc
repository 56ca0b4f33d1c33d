#include "ledger/tlog_proof.h"

// Whatever parses must format to the same bytes, and verifying it must not fail in another way than by a no.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::ledger;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto proof = parse_tlog_proof(text);
  if (!proof) return 0;
  CHECK(format_tlog_proof(*proof) == text);
  const auto log = VerifierKey::make("example.com/log", fieldprint::ledger::PublicKey{1});
  const auto witness = VerifierKey::make("witness", fieldprint::ledger::PublicKey{2}, KeyType::kCosignature);
  const TrustPolicy policy = {{*log}, {*witness}, 0};
  const auto verified = verify_tlog_proof(*proof, fieldprint::Digest{}, policy);
  CHECK(verified.ok() || verified.error().kind == fieldprint::ErrorKind::kRefuted);
  return 0;
}
