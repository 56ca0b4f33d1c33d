#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "weights/gguf_model.h"
#include "weights/gguf_test_builder.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace fieldprint::weights {
namespace {

/// Reads every value that a layer's matrices and norms hold.
void pack_everything(const GgufModel& model) {
  std::vector<const LogicalMatrix*> matrices = {&model.embedding, &model.output};
  for (const GgufLayer& layer : model.layers) {
    for (const LogicalMatrix* matrix : {&layer.query, &layer.key, &layer.value, &layer.attention_output,
                                        &layer.gate, &layer.up, &layer.down}) {
      matrices.push_back(matrix);
    }
  }
  for (const LogicalMatrix* matrix : matrices) {
    const auto format = packed_format(*matrix->tensor);
    if (!format) continue;
    TilePacker packer({*matrix}, *format);
    for (std::int64_t tile = 0; tile < packer.tiles(); ++tile) {
      if (!packer.pack(tile).ok()) break;
    }
  }
}

const testing::Bytes& seed(std::uint32_t which) {
  static const testing::Bytes kSeeds[] = {
      testing::TinyModel{}.builder().build(),
      testing::TinyModel{.architecture = Architecture::kGemma3, .attention = TensorType::kQ5_1}
          .builder()
          .build(),
      testing::TinyModel{.attention = TensorType::kBF16, .untied = true}.builder().build(2),
  };
  return kSeeds[which % 3];
}

}  // namespace
}  // namespace fieldprint::weights

/// Starts from sound files: few random bytes are one.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int random) {
  const auto& seed = fieldprint::weights::seed(random);
  if (size < 64 && seed.size() <= max_size) {
    std::ranges::copy(seed, data);
    size = seed.size();
  }
  return LLVMFuzzerMutate(data, size, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::weights;
  const auto gguf = Gguf::parse({data, size});
  if (!gguf) return 0;
  for (const auto& [name, tensor] : gguf->tensors()) {
    if (tensor.columns() > 1 << 16) continue;
    std::vector<float> row(static_cast<std::size_t>(tensor.columns()));
    dequantize_row(tensor.type, tensor.row(tensor.rows() - 1), row);
  }
  for (const char* key :
       {"general.name", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "llama.block_count"}) {
    static_cast<void>(gguf->integer(key).ok() || gguf->real(key).ok() || gguf->boolean(key).ok());
    static_cast<void>(gguf->string(key).ok() || gguf->reals(key).ok() || gguf->integers(key).ok());
  }
  const auto vocabulary = read_gguf_vocabulary(*gguf);
  const auto model = read_gguf_model(*gguf);
  if (model) pack_everything(*model);
  return 0;
}
