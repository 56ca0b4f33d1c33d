#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "weights/fpm_format.h"
#include "weights/model_file.h"

namespace fieldprint::weights {

/// What a .fpm file holds; pointers lead into its bytes.
struct FpmContents {
  Digest digest{};
  ModelSpec spec;
  std::vector<LayerWeights> layers;
  backend::PackedWeight embedding{};
  backend::PackedWeight output{};
  const float* output_norm = nullptr;
  tokenizer::Vocabulary vocabulary;
  std::string manifest;
};

/// Checks and reads a whole .fpm file; `bytes` starts at a multiple of 64 in memory. Errors name what is
/// wrong.
Result<FpmContents> read_fpm(std::span<const std::uint8_t> bytes);

/// "layer 3 qkv", for messages.
std::string section_name(SectionKind kind, std::int32_t layer, std::uint32_t part);

/// Rows of a matrix with its padding; bytes of its section.
std::int64_t padded_rows(std::int64_t rows);
std::int64_t matrix_bytes(backend::LinearFormat format, std::int64_t rows, std::int64_t cols);

/// Rows of the high rotary tables: ceil(context/256).
std::int32_t rope_high_rows(std::int32_t context);

}  // namespace fieldprint::weights
