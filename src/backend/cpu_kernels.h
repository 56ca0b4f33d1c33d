#pragma once

#include <cstdint>

#include "backend/ops.h"

namespace fieldprint::backend {

/// The operations of one instruction set. Each runs items [begin, end) and may run on any thread; an item's
/// result depends on nothing but the arguments.
struct CpuKernels {
  const char* name;
  void (*embed)(const EmbedArgs&, std::int64_t begin, std::int64_t end);
  void (*norm_quantize)(const NormQuantizeArgs&, std::int64_t begin, std::int64_t end);
  void (*norm_add)(const NormAddArgs&, std::int64_t begin, std::int64_t end);
  void (*quantize)(const QuantizeArgs&, std::int64_t begin, std::int64_t end);
  void (*gated_quantize)(const GatedQuantizeArgs&, std::int64_t begin, std::int64_t end);
  void (*linear)(const LinearArgs&, std::int64_t begin, std::int64_t end);
  void (*rope_append)(const RopeAppendArgs&, std::int64_t begin, std::int64_t end);
  void (*attention_preface)(const AttentionArgs&, std::int64_t begin, std::int64_t end);
  void (*attention_context)(const AttentionArgs&, std::int64_t begin, std::int64_t end);
  void (*probabilities)(const ProbabilitiesArgs&, std::int64_t begin, std::int64_t end);
};

extern const CpuKernels kScalarKernels;
extern const CpuKernels kAvx2Kernels;    ///< needs AVX2, FMA, F16C
extern const CpuKernels kAvx512Kernels;  ///< needs AVX-512 F, BW, VL, DQ, VNNI, VBMI
extern const CpuKernels
    kAmxKernels;  ///< needs these and AMX tiles with int8, which Linux must have permitted

}  // namespace fieldprint::backend
