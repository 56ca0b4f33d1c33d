#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "weights/kv_scales.h"
#include "weights/model_file.h"

namespace fieldprint::weights {

/// The inputs of a layer's linears, by the role that the activation format is chosen for.
enum class LinearRole : std::uint8_t { kQkv = 0, kAttentionOutput = 1, kGateUp = 2, kDown = 3, kOutput = 4 };

/// What only running the model can tell.
struct Calibration {
  std::vector<KvCalibration> kv;  ///< [layers]
  /// Activation format of the w8r tensors of each role, and the measured error that decided it.
  struct Choice {
    backend::ActivationFormat format;
    double divergence;  ///< mean KL divergence of the logits from the all-int16 model, nats a token
  };
  std::vector<Choice> roles;  ///< one for each LinearRole
};

using Calibrate = std::function<Result<Calibration>(const ModelFile& draft)>;

/// Called with bytes done and bytes in all.
using ImportProgress = std::function<void(std::int64_t, std::int64_t)>;

/// Converts a GGUF file. Deterministic: the same input gives the same bytes on every machine and backend. The
/// draft that `calibrate` sees has offsets of 0 and scales of 1 for keys and values, and int16 activations
/// for w8r. Writes beside `out`, which is not the source, then renames: errors and symbolic links
/// there are FpmWriter's.
Result<std::unique_ptr<ModelFile>> import_gguf(const std::string& gguf, const std::string& out,
                                               const Calibrate& calibrate, const ImportProgress& progress);

}  // namespace fieldprint::weights
