#pragma once

#include <cstdint>
#include <queue>
#include <vector>

namespace fieldprint::tokenizer {

/// A run of bytes of the word that is being merged.
struct Symbol {
  std::uint32_t begin;
  std::uint32_t length;
  std::int32_t token;  ///< negative: not known, or none
};

/// What two neighbours would become.
struct Merge {
  static constexpr std::uint32_t kNever = 0xffffffff;
  std::uint32_t priority = kNever;  ///< smallest first; equal ones from left to right
  std::int32_t token = -1;
};

namespace detail {

/// Quadratic, but without allocation and with the least work a step: for words of a few letters.
template <class Propose>
void merge_short(std::vector<Symbol>& symbols, std::vector<Merge>& merges, const Propose& propose) {
  merges.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) merges.push_back(propose(symbols[i], symbols[i + 1]));
  while (!merges.empty()) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < merges.size(); ++i) {
      if (merges[i].priority < merges[best].priority) best = i;
    }
    if (merges[best].priority == Merge::kNever) return;
    symbols[best].length += symbols[best + 1].length;
    symbols[best].token = merges[best].token;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    merges.erase(merges.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) merges[best - 1] = propose(symbols[best - 1], symbols[best]);
    if (best < merges.size()) merges[best] = propose(symbols[best], symbols[best + 1]);
  }
}

struct Candidate {
  std::uint32_t priority;
  std::uint32_t left;
  std::uint32_t right;
  std::uint32_t length;  ///< of both together; tells a candidate whose symbols have grown since
  std::int32_t token;

  /// Reversed: std::priority_queue has the largest on top.
  bool operator<(const Candidate& other) const {
    return priority != other.priority ? priority > other.priority : left > other.left;
  }
};

/// O(n log n): the neighbours form a linked list, a heap holds what they propose.
template <class Propose>
void merge_long(std::vector<Symbol>& symbols, const Propose& propose) {
  const auto count = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> previous(count);
  std::vector<std::uint32_t> next(count);
  std::priority_queue<Candidate> heap;
  const auto consider = [&](std::uint32_t left, std::uint32_t right) {
    const Merge merge = propose(symbols[left], symbols[right]);
    if (merge.priority == Merge::kNever) return;
    heap.push({merge.priority, left, right, symbols[left].length + symbols[right].length, merge.token});
  };
  for (std::uint32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;  // wraps for the first, which is never read
    next[i] = i + 1;
    if (i > 0) consider(i - 1, i);
  }
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.left];
    Symbol& right = symbols[top.right];
    if (left.length == 0 || right.length == 0 || left.length + right.length != top.length) continue;
    left.length = top.length;
    left.token = top.token;
    right.length = 0;
    next[top.left] = next[top.right];
    if (next[top.left] < count) previous[next[top.left]] = top.left;
    if (top.left > 0) consider(previous[top.left], top.left);
    if (next[top.left] < count) consider(top.left, next[top.left]);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.length == 0; });
}

}  // namespace detail

/// Merges neighbours, best proposal first, until there is no proposal. `propose(left, right)` gives a Merge
/// and must depend on nothing but the two symbols. `scratch` only saves allocations.
template <class Propose>
void merge_symbols(std::vector<Symbol>& symbols, std::vector<Merge>& scratch, const Propose& propose) {
  constexpr std::size_t kShort = 32;
  if (symbols.size() <= kShort) {
    detail::merge_short(symbols, scratch, propose);
  } else {
    detail::merge_long(symbols, propose);
  }
}

}  // namespace fieldprint::tokenizer
