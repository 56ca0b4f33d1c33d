#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include "backend/select.h"
#include "eval/calibrate.h"
#include "eval/float_model.h"
#include "weights/gguf_test_builder.h"
#include "weights/import.h"

namespace fieldprint::eval::testing {

/// A tiny random model as a GGUF file and imported, in a folder of its own, with the scalar backend.
class TinyImport {
 public:
  explicit TinyImport(const weights::testing::TinyModel& tiny) : TinyImport(tiny.builder()) {}
  explicit TinyImport(const weights::testing::GgufBuilder& builder) {
    std::string pattern = (std::filesystem::temp_directory_path() / "fieldprint-eval-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    directory_ = pattern;
    const weights::testing::Bytes bytes = builder.build();
    std::ofstream(gguf(), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    backend_ = backend::select_backend("scalar", 1).value();
    const auto calibration = [&](const weights::ModelFile& draft) { return calibrate(draft, *backend_); };
    file_ = weights::import_gguf(gguf(), model_path(), calibration, {}).value();
  }
  ~TinyImport() { std::filesystem::remove_all(directory_); }
  TinyImport(const TinyImport&) = delete;
  TinyImport& operator=(const TinyImport&) = delete;

  std::string gguf() const { return directory_ + "/tiny.gguf"; }
  std::string model_path() const { return directory_ + "/tiny.fpm"; }
  const weights::ModelFile& file() const { return *file_; }
  backend::Backend& backend() const { return *backend_; }
  std::unique_ptr<FloatModel> float_model() const {
    return std::make_unique<FloatModel>(weights::FloatSource::open(gguf()).value(), 2);
  }

 private:
  std::string directory_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<weights::ModelFile> file_;
};

}  // namespace fieldprint::eval::testing
