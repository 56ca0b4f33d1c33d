#include "weights/float_weights.h"

#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "exact/format.h"
#include "weights/fpm_reader.h"
#include "weights/gguf_model.h"
#include "weights/rope_table.h"

namespace fieldprint::weights {
namespace {

using backend::PackedWeight;
using backend::RopeTable;

class GgufSource final : public FloatSource {
 public:
  GgufSource(GgufFile file, GgufModel model) : file_(std::move(file)), model_(std::move(model)) {
    const std::int32_t rows = rope_high_rows(model_.spec.context);
    rope_ = rope_table(model_.rope_frequencies, rows);
    if (!model_.local_rope_frequencies.empty()) local_rope_ = rope_table(model_.local_rope_frequencies, rows);
  }

  const ModelSpec& spec() const override { return model_.spec; }
  bool tied() const override { return model_.tied; }
  bool local(std::int32_t layer) const override { return at(layer).local; }
  bool has(TensorRole role, std::int32_t layer) const override { return find(role, layer).tensor != nullptr; }

  std::vector<float> tensor(TensorRole role, std::int32_t layer) const override {
    const LogicalMatrix matrix = find(role, layer);
    if (matrix.tensor == nullptr) return {};
    const auto columns = static_cast<std::size_t>(matrix.columns());
    std::vector<float> out(columns * static_cast<std::size_t>(matrix.rows()));
    for (std::int64_t row = 0; row < matrix.rows(); ++row) {
      dequantize_row(matrix.tensor->type, matrix.row_data(row),
                     std::span(out).subspan(static_cast<std::size_t>(row) * columns, columns));
    }
    return out;
  }

  RopeTable rope(std::int32_t layer) const override {
    const std::vector<float>& table = local(layer) && !local_rope_.empty() ? local_rope_ : rope_;
    const std::int64_t pairs = model_.spec.head_dim / 2;
    const std::int64_t high = rope_high_rows(model_.spec.context) * pairs;
    const float* const low = table.data() + 2 * high;
    return {.high_cos = table.data(),
            .high_sin = table.data() + high,
            .low_cos = low,
            .low_sin = low + exact::kRopeLow * pairs};
  }

 private:
  const GgufLayer& at(std::int32_t layer) const {
    CHECK(layer >= 0 && layer < model_.spec.layers);
    return model_.layers[static_cast<std::size_t>(layer)];
  }

  LogicalMatrix find(TensorRole role, std::int32_t layer) const {
    switch (role) {
      case TensorRole::kEmbedding:
        return model_.embedding;
      case TensorRole::kOutput:
        return model_.output;
      case TensorRole::kOutputNorm:
        return {.tensor = model_.output_norm};
      case TensorRole::kAttentionNorm:
        return {.tensor = at(layer).attention_norm};
      case TensorRole::kQuery:
        return at(layer).query;
      case TensorRole::kKey:
        return at(layer).key;
      case TensorRole::kValue:
        return at(layer).value;
      case TensorRole::kQNorm:
        return {.tensor = at(layer).q_norm};
      case TensorRole::kKNorm:
        return {.tensor = at(layer).k_norm};
      case TensorRole::kAttentionOutput:
        return at(layer).attention_output;
      case TensorRole::kPostAttentionNorm:
        return {.tensor = at(layer).post_attention_norm};
      case TensorRole::kFfnNorm:
        return {.tensor = at(layer).ffn_norm};
      case TensorRole::kGate:
        return at(layer).gate;
      case TensorRole::kUp:
        return at(layer).up;
      case TensorRole::kDown:
        return at(layer).down;
      case TensorRole::kPostFfnNorm:
        return {.tensor = at(layer).post_ffn_norm};
    }
    return {};
  }

  GgufFile file_;
  GgufModel model_;
  std::vector<float> rope_;
  std::vector<float> local_rope_;
};

class FpmSource final : public FloatSource {
 public:
  explicit FpmSource(std::unique_ptr<ModelFile> file) : file_(std::move(file)) {}

  const ModelSpec& spec() const override { return file_->spec(); }
  bool tied() const override { return file_->output().data == file_->embedding().data; }
  bool local(std::int32_t layer) const override { return at(layer).local; }

  bool has(TensorRole role, std::int32_t layer) const override {
    const Slice slice = find(role, layer);
    return slice.floats != nullptr || slice.rows > 0;
  }

  std::vector<float> tensor(TensorRole role, std::int32_t layer) const override {
    const Slice slice = find(role, layer);
    if (slice.floats != nullptr) return {slice.floats, slice.floats + slice.count};
    if (slice.rows == 0) return {};
    const auto columns = static_cast<std::size_t>(slice.matrices.front().cols);
    std::vector<float> out(columns * static_cast<std::size_t>(slice.rows));
    for (std::int64_t row = 0; row < slice.rows; ++row) {
      unpack_stack_row(slice.matrices, slice.first_row + row,
                       std::span(out).subspan(static_cast<std::size_t>(row) * columns, columns));
    }
    return out;
  }

  RopeTable rope(std::int32_t layer) const override { return at(layer).rope; }

 private:
  /// Floats as stored, or some rows of matrices that are stacked.
  struct Slice {
    const float* floats = nullptr;
    std::int64_t count = 0;
    std::vector<PackedWeight> matrices{};
    std::int64_t first_row = 0;
    std::int64_t rows = 0;
  };

  static void unpack_stack_row(const std::vector<PackedWeight>& matrices, std::int64_t row,
                               std::span<float> out) {
    for (const PackedWeight& matrix : matrices) {
      if (row < matrix.rows) return unpack_row(matrix, row, out);
      row -= matrix.rows;
    }
    CHECK(false, "row beyond the stack");
  }

  const LayerWeights& at(std::int32_t layer) const {
    CHECK(layer >= 0 && layer < spec().layers);
    return file_->layers()[static_cast<std::size_t>(layer)];
  }

  Slice find(TensorRole role, std::int32_t layer) const {
    const ModelSpec& s = spec();
    const std::int64_t queries = s.heads * s.head_dim;
    const std::int64_t keys = s.kv_heads * s.head_dim;
    const auto floats = [](const float* values, std::int64_t count) {
      return Slice{.floats = values, .count = count};
    };
    const auto whole = [](const PackedWeight& matrix) {
      return Slice{.matrices = {matrix}, .rows = matrix.rows};
    };
    const auto part = [](const std::vector<PackedWeight>& stack, std::int64_t first, std::int64_t rows) {
      return Slice{.matrices = stack, .first_row = first, .rows = rows};
    };
    switch (role) {
      case TensorRole::kEmbedding:
        return whole(file_->embedding());
      case TensorRole::kOutput:
        return whole(file_->output());
      case TensorRole::kOutputNorm:
        return floats(file_->output_norm(), s.dim);
      case TensorRole::kAttentionNorm:
        return floats(at(layer).attention_norm, s.dim);
      case TensorRole::kQuery:
        return part(at(layer).qkv, 0, queries);
      case TensorRole::kKey:
        return part(at(layer).qkv, queries, keys);
      case TensorRole::kValue:
        return part(at(layer).qkv, queries + keys, keys);
      case TensorRole::kQNorm:
        return floats(at(layer).q_norm, s.head_dim);
      case TensorRole::kKNorm:
        return floats(at(layer).k_norm, s.head_dim);
      case TensorRole::kAttentionOutput:
        return whole(at(layer).attention_output);
      case TensorRole::kPostAttentionNorm:
        return floats(at(layer).post_attention_norm, s.dim);
      case TensorRole::kFfnNorm:
        return floats(at(layer).ffn_norm, s.dim);
      case TensorRole::kGate:
        return part(at(layer).gate_up, 0, s.hidden);
      case TensorRole::kUp:
        return part(at(layer).gate_up, s.hidden, s.hidden);
      case TensorRole::kDown:
        return whole(at(layer).down);
      case TensorRole::kPostFfnNorm:
        return floats(at(layer).post_ffn_norm, s.dim);
    }
    return {};
  }

  std::unique_ptr<ModelFile> file_;
};

}  // namespace

Result<std::unique_ptr<FloatSource>> FloatSource::open(const std::string& path) {
  bool is_gguf = false;
  {
    const auto file = MappedFile::open(path);
    if (!file) return file.error();
    const auto bytes = (*file)->bytes();
    is_gguf = bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
  }
  if (!is_gguf) {
    auto model = ModelFile::open(path);
    if (!model) return model.error();
    return std::unique_ptr<FloatSource>(std::make_unique<FpmSource>(std::move(*model)));
  }
  auto file = GgufFile::open(path);
  if (!file) return file.error();
  auto model = read_gguf_model(file->gguf);
  if (!model) return Error{model.error().kind, fmt::format("{}: {}", path, model.error().message)};
  return std::unique_ptr<FloatSource>(std::make_unique<GgufSource>(std::move(*file), std::move(*model)));
}

}  // namespace fieldprint::weights
