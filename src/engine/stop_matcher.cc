#include "engine/stop_matcher.h"

#include <algorithm>

namespace fieldprint::engine {

StopMatcher::Found StopMatcher::push(std::string_view piece) {
  held_ += piece;
  std::size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) return {held_.substr(0, first), true};
  // Keep the longest end that begins some stop string.
  std::size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.ends_with(std::string_view(stop).substr(0, length))) keep = length;
    }
  }
  Found found{held_.substr(0, held_.size() - keep), false};
  held_.erase(0, found.text.size());
  return found;
}

}  // namespace fieldprint::engine
