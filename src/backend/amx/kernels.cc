#include "backend/amx/linear.h"
#include "backend/avx512/attention.h"
#include "backend/avx512/linear.h"
#include "backend/avx512/quantize.h"
#include "backend/avx512/rope.h"
#include "backend/cpu_kernels.h"

namespace fieldprint::backend {

const CpuKernels kAmxKernels = {
    .name = "amx",
    .embed = avx512::embed,
    .norm_quantize = avx512::norm_quantize,
    .norm_add = avx512::norm_add,
    .quantize = avx512::quantize,
    .gated_quantize = avx512::gated_quantize,
    .linear = amx::linear,
    .rope_append = avx512::rope_append,
    .attention_preface = avx512::attention_preface,
    .attention_context = avx512::attention_context,
    .probabilities = avx512::probabilities,
};

}  // namespace fieldprint::backend
