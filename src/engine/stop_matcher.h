#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fieldprint::engine {

/// Watches the text of an answer for stop strings. Text that may be the beginning of one is held back, so
/// that no part of a stop string is ever streamed.
class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  struct Found {
    std::string text;  ///< released by this piece
    bool stopped;      ///< a stop string is complete; `text` ends before the first one
  };
  Found push(std::string_view piece);
  /// What is still held back, at the end of an answer that no stop string ended.
  std::string finish() { return std::move(held_); }

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace fieldprint::engine
