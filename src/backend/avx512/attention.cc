#include "backend/avx512/attention.h"

#include "backend/avx512/attention_tile.h"
#include "backend/simd/attention_walk.h"

namespace fieldprint::backend::avx512 {

void attention_preface(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  simd::attention_preface<Tile>(args, begin, end);
}

void attention_context(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  simd::attention_context<Tile>(args, begin, end);
}

}  // namespace fieldprint::backend::avx512
