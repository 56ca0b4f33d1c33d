#pragma once

#include "backend/avx512/attention_narrow.h"
#include "backend/avx512/attention_wide.h"

/// One tile of K and V against some query rows.
namespace fieldprint::backend::avx512 {
namespace {

/// As many rows at once as the registers hold sums for.
inline constexpr std::int64_t kRowsAtOnce = 4;
/// Up to so many rows, unpacking a tile costs more than regrouping it for every four of them.
inline constexpr std::int64_t kMostNarrowRows = 8;

/// Calls with<N>(rows) for every few rows: four at a time, but 9 rows as 3 + 3 + 3 rather than 4 + 4 + 1.
template <class With>
inline void by_rows(Row* const* rows, std::int64_t count, With with) {
  while (count > 0) {
    const std::int64_t turns = (count + kRowsAtOnce - 1) / kRowsAtOnce;
    const std::int64_t now = (count + turns - 1) / turns;
    if (now == 4) with.template operator()<4>(rows);
    if (now == 3) with.template operator()<3>(rows);
    if (now == 2) with.template operator()<2>(rows);
    if (now == 1) with.template operator()<1>(rows);
    rows += now;
    count -= now;
  }
}

/// For the walk over the tiles.
struct Tile : Isa {
  using Row = avx512::Row;
  using UnpackedTile = avx512::UnpackedTile;

  static void set_query(Row& row, const std::int8_t* q, std::int64_t dim) { avx512::set_query(row, q, dim); }

  static void attend(const simd::TilePages& tile, std::int64_t dim, Row* const* rows, std::int64_t count,
                     UnpackedTile& unpacked) {
    if (count <= kMostNarrowRows) {
      by_rows(rows, count, [&]<int N>(Row* const* some) { attend_narrow<N>(tile, dim, some); });
      return;
    }
    unpack(tile, dim, unpacked);
    by_rows(rows, count, [&]<int N>(Row* const* some) { attend_wide<N>(tile, unpacked, dim, some); });
  }
};

}  // namespace
}  // namespace fieldprint::backend::avx512
