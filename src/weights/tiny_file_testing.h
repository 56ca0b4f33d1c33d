#pragma once

#include <functional>
#include <memory>

#include "base/temporary_folder.h"
#include "weights/gguf_test_builder.h"
#include "weights/import.h"

namespace fieldprint::weights::testing {

/// A tiny random model, imported into a folder of its own. Its scales of keys and values are noise, where
/// real ones would be measured, so that a test notices whether they are used alike everywhere.
class TinyFile {
 public:
  explicit TinyFile(const TinyModel& tiny = {}) : TinyFile(tiny.builder()) {}
  explicit TinyFile(const GgufBuilder& builder) {
    write_file(folder_.file("tiny.gguf"), builder.build());
    file_ = import_gguf(folder_.file("tiny.gguf"), folder_.file("tiny.fpm"), made_up, nullptr).value();
  }

  const ModelFile& file() const { return *file_; }

 private:
  static Result<Calibration> made_up(const ModelFile& draft) {
    const ModelSpec& spec = draft.spec();
    Noise noise(5);
    Calibration out;
    for (std::int32_t layer = 0; layer < spec.layers; ++layer) {
      KvCalibration& kv = out.kv.emplace_back(unit_kv_calibration(spec.kv_heads, spec.head_dim));
      for (float& offset : kv.k_offset) offset = 0.25F * noise.real();
      for (float& scale : kv.k_scale) scale = 0.01F + 0.005F * noise.real();
      for (float& scale : kv.v_scale) scale = 0.01F + 0.005F * noise.real();
      for (float& factor : kv.sink_factor) factor = 1.5F + 0.75F * noise.real();
    }
    out.roles.assign(5, {backend::ActivationFormat::kA8, 0.0});
    out.roles[static_cast<std::size_t>(LinearRole::kDown)] = {backend::ActivationFormat::kA16, 0.0};
    return out;
  }

  TemporaryFolder folder_ = TemporaryFolder::make().value();
  std::unique_ptr<ModelFile> file_;
};

}  // namespace fieldprint::weights::testing
