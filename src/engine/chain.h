#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "commit/freeze.h"
#include "commit/receipt.h"
#include "core/request.h"

namespace fieldprint::engine {

/// A commit as the engine hands it over. What its record names besides, the chain knows.
struct SealedPrompt {
  std::vector<core::BlockRecord> blocks;
};
struct SealedSegment {
  std::vector<std::int32_t> tokens;
  core::BlockRecord block;
};
struct SealedAnswer {
  core::Answer answer;
};
using Sealed = std::variant<SealedPrompt, SealedSegment, SealedAnswer>;

/// A history to compute again, and what it must give.
struct History {
  commit::Body body;  ///< tokens, settings, and the blocks that the trajectory has stated
  std::size_t outputs =
      0;                  ///< so many of the body's output tokens are stated; one that follows has no meaning
  bool has_mass = false;  ///< the anchors' mass is stated
};

/// Makes the records of one trajectory, in the order of its commits.
class Chain {
 public:
  Chain(commit::Origin origin, core::Request request);

  const core::Request& request() const { return request_; }
  /// The leaf of the next commit; its hash is the parent of the one after it.
  Result<commit::Bytes> next(const Sealed& sealed);
  /// Leaf hashes of the commits so far.
  const std::vector<Digest>& leaves() const { return leaves_; }
  /// All up to the last commit.
  History history() const;
  /// Tokens that the last commit added, as a share of all that history() computes to check it; 0 … 1.
  double last_share() const;
  /// The answer's, once that was the last commit.
  const std::optional<commit::Body>& body() const { return body_; }

 private:
  Result<commit::Bytes> encode(const SealedPrompt& prompt);
  Result<commit::Bytes> encode(const SealedSegment& segment);
  Result<commit::Bytes> encode(const SealedAnswer& answer);

  commit::Origin origin_;
  core::Request request_;
  std::vector<Digest> leaves_;
  std::vector<core::BlockRecord> blocks_;
  commit::TokenIds output_;
  std::optional<commit::Body> body_;
  std::size_t tokens_ = 0;         ///< prompt and output as far as they are committed
  std::size_t tokens_before_ = 0;  ///< the same before the last commit
};

}  // namespace fieldprint::engine
