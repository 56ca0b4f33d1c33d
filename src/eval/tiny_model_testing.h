#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "backend/select.h"
#include "base/temporary_folder.h"
#include "eval/calibrate.h"
#include "eval/float_model.h"
#include "weights/gguf_test_builder.h"
#include "weights/import.h"

namespace fieldprint::eval::testing {

/// A GGUF file in a folder of its own, with the scalar backend to import it.
class TinyFolder {
 public:
  explicit TinyFolder(const weights::testing::GgufBuilder& builder) {
    weights::testing::write_file(gguf(), builder.build());
    backend_ = backend::select_backend("scalar", 1).value();
  }

  Result<std::unique_ptr<weights::ModelFile>> import() const {
    const auto calibration = [&](const weights::ModelFile& draft) { return calibrate(draft, *backend_); };
    return weights::import_gguf(gguf(), model_path(), calibration, {});
  }
  std::string gguf() const { return folder_.file("tiny.gguf"); }
  std::string model_path() const { return folder_.file("tiny.fpm"); }
  backend::Backend& backend() const { return *backend_; }

 private:
  TemporaryFolder folder_ = TemporaryFolder::make().value();
  std::unique_ptr<backend::Backend> backend_;
};

/// A tiny random model as a GGUF file and imported.
class TinyImport {
 public:
  explicit TinyImport(const weights::testing::TinyModel& tiny) : TinyImport(tiny.builder()) {}
  explicit TinyImport(const weights::testing::GgufBuilder& builder)
      : folder_(builder), file_(folder_.import().value()) {}

  std::string gguf() const { return folder_.gguf(); }
  std::string model_path() const { return folder_.model_path(); }
  const weights::ModelFile& file() const { return *file_; }
  backend::Backend& backend() const { return folder_.backend(); }
  std::unique_ptr<FloatModel> float_model() const {
    return std::make_unique<FloatModel>(weights::FloatSource::open(gguf()).value(), 2);
  }

 private:
  TinyFolder folder_;
  std::unique_ptr<weights::ModelFile> file_;
};

}  // namespace fieldprint::eval::testing
