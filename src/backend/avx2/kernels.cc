#include "backend/avx2/attention.h"
#include "backend/avx2/linear.h"
#include "backend/avx2/quantize.h"
#include "backend/avx2/rope.h"
#include "backend/cpu_kernels.h"

namespace fieldprint::backend {

const CpuKernels kAvx2Kernels = {
    .name = "avx2",
    .embed = avx2::embed,
    .norm_quantize = avx2::norm_quantize,
    .norm_add = avx2::norm_add,
    .quantize = avx2::quantize,
    .gated_quantize = avx2::gated_quantize,
    .linear = avx2::linear,
    .rope_append = avx2::rope_append,
    .attention_preface = avx2::attention_preface,
    .attention_context = avx2::attention_context,
    .probabilities = avx2::probabilities,
};

}  // namespace fieldprint::backend
