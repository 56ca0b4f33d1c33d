#include "cli/proof_file.h"

// A proof is malformed, or it holds or not; nothing else happens.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint;
  const auto proof = cli::parse_proof_file({reinterpret_cast<const char*>(data), size});
  if (!proof) {
    CHECK(proof.error().kind == ErrorKind::kCaller);
    return 0;
  }
  const Status status = cli::check_proof(*proof);
  CHECK(status.ok() || status.error().kind == ErrorKind::kRefuted);
  return 0;
}
