#pragma once

#include <vector>

#include "base/result.h"
#include "core/request.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::end_to_end {

/// The requests of the invariance test. Half of them are greedy, half sampled at temperature 0.8.
struct Requests {
  /// Two of few tokens, for the backend that defines the right answer and is slow.
  std::vector<core::Request> tiny;
  /// Seven languages, code, chats; with and without anchors, floors, ceilings and stop
  /// strings.
  std::vector<core::Request> brief;
  /// Three short ones whose answers begin two more blocks each, so that a tight pool must preempt.
  std::vector<core::Request> growing;
  /// Two of more than 2,000 tokens whose answers begin two more blocks each.
  std::vector<core::Request> extended;
};

/// An error if an anchor or a prompt cannot be rendered with this vocabulary.
Result<Requests> make_requests(const tokenizer::Tokenizer& tokenizer);

}  // namespace fieldprint::end_to_end
