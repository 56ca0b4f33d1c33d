#pragma once

#include <span>
#include <vector>

#include "backend/ops.h"

namespace fieldprint::backend {

/// How a step's attention is cut into independent items. The cut changes no result.
struct AttentionPlan {
  std::vector<PrefaceItem> preface;
  std::vector<ContextItem> context;
};

/// Groups neighbouring sequences whose sink and anchor blocks are the same, so that each shared page is read
/// once; cuts long prefills by queries, so that a few KV heads still keep every thread busy.
AttentionPlan plan_attention(std::span<const AttentionSequence> sequences, std::int32_t heads,
                             std::int32_t kv_heads);

}  // namespace fieldprint::backend
