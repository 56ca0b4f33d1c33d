#pragma once

#include <vector>

#include "flashinfer_calls.h"

namespace peers {

/// Fills with `count` bf16 values drawn evenly from -scale … scale.
void randomise_bf16(void* out, std::size_t count, float scale, unsigned seed);

/// Likewise with e4m3.
void randomise_fp8(void* out, std::size_t count, float scale, unsigned seed);

/// A row of the result that is checked: its query attends to the first `tokens` tokens of a sequence.
struct Row {
  std::int64_t query;
  int sequence;
  int tokens;
};

/// ‖out − definition‖ / ‖definition‖ over the rows, by a plain kernel in float32. q and out are
/// [queries][32][128].
double relative_error(const PagedCache& cache, const std::vector<Row>& rows, const void* q, bool fp8_queries,
                      const __nv_bfloat16* out);

}  // namespace peers
