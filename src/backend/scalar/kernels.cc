#include "backend/cpu_kernels.h"
#include "backend/scalar/attention.h"
#include "backend/scalar/linear.h"
#include "backend/scalar/quantize.h"
#include "backend/scalar/rope.h"

namespace fieldprint::backend {

const CpuKernels kScalarKernels = {
    .name = "scalar",
    .embed = scalar::embed,
    .norm_quantize = scalar::norm_quantize,
    .norm_add = scalar::norm_add,
    .quantize = scalar::quantize,
    .gated_quantize = scalar::gated_quantize,
    .linear = scalar::linear,
    .rope_append = scalar::rope_append,
    .attention_preface = scalar::attention_preface,
    .attention_context = scalar::attention_context,
    .probabilities = scalar::probabilities,
};

}  // namespace fieldprint::backend
