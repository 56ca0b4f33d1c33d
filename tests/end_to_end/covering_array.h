#pragma once

#include <array>
#include <cstddef>
#include <set>
#include <tuple>
#include <vector>

namespace fieldprint::end_to_end {

/// One value (an index from 0) for each of N axes.
template <std::size_t N>
using Combination = std::array<std::size_t, N>;

/// Every combination of values; sizes[i] is the number of values of axis i, ≥ 1.
template <std::size_t N>
std::vector<Combination<N>> whole_product(const std::array<std::size_t, N>& sizes) {
  std::vector<Combination<N>> rows = {Combination<N>{}};
  for (std::size_t axis = 0; axis < N; ++axis) {
    std::vector<Combination<N>> longer;
    for (const Combination<N>& row : rows) {
      for (std::size_t value = 0; value < sizes[axis]; ++value) {
        longer.push_back(row);
        longer.back()[axis] = value;
      }
    }
    rows = std::move(longer);
  }
  return rows;
}

/// Combinations in which every pair of values of any two axes occurs: the one that adds most new pairs, again
/// and again (a greedy covering array of strength 2; Cohen et al., The AETG System, 1997). The first of
/// equals wins, so the result is always the same.
template <std::size_t N>
std::vector<Combination<N>> covering_pairs(const std::array<std::size_t, N>& sizes) {
  using Pair = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t>;
  const std::vector<Combination<N>> all = whole_product(sizes);
  const auto for_each_pair = [](const Combination<N>& row, auto&& visit) {
    for (std::size_t a = 0; a < N; ++a) {
      for (std::size_t b = a + 1; b < N; ++b) visit(Pair{a, row[a], b, row[b]});
    }
  };
  std::set<Pair> missing;
  for (const Combination<N>& row : all) for_each_pair(row, [&](const Pair& pair) { missing.insert(pair); });
  std::vector<Combination<N>> rows;
  while (!missing.empty()) {
    const Combination<N>* best = nullptr;
    std::size_t most = 0;
    for (const Combination<N>& row : all) {
      std::size_t added = 0;
      for_each_pair(row, [&](const Pair& pair) { added += missing.count(pair); });
      if (added > most) {
        most = added;
        best = &row;
      }
    }
    for_each_pair(*best, [&](const Pair& pair) { missing.erase(pair); });
    rows.push_back(*best);
  }
  return rows;
}

/// Which rows of `rows` suffice to meet every value of every axis once; the one with most new values first.
template <std::size_t N>
std::set<std::size_t> covering_values(const std::vector<Combination<N>>& rows) {
  std::set<std::pair<std::size_t, std::size_t>> missing;
  for (const Combination<N>& row : rows) {
    for (std::size_t axis = 0; axis < N; ++axis) missing.emplace(axis, row[axis]);
  }
  std::set<std::size_t> chosen;
  while (!missing.empty()) {
    std::size_t best = 0;
    std::size_t most = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::size_t added = 0;
      for (std::size_t axis = 0; axis < N; ++axis) added += missing.count({axis, rows[i][axis]});
      if (added > most) {
        most = added;
        best = i;
      }
    }
    for (std::size_t axis = 0; axis < N; ++axis) missing.erase({axis, rows[best][axis]});
    chosen.insert(best);
  }
  return chosen;
}

}  // namespace fieldprint::end_to_end
