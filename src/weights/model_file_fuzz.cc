#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "base/check.h"
#include "base/temporary_folder.h"
#include "weights/fpm_reader.h"
#include "weights/fpm_test_seal.h"
#include "weights/gguf_test_builder.h"
#include "weights/import.h"
#include "weights/mapped_file.h"
#include "weights/pack.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace fieldprint::weights {
namespace {

using testing::Bytes;

/// A sound .fpm file, made by importing a small model.
Bytes imported(const testing::TinyModel& tiny) {
  const TemporaryFolder folder = TemporaryFolder::make().value();
  const std::string in = folder.file("tiny.gguf");
  const std::string out = folder.file("tiny.fpm");
  testing::write_file(in, tiny.builder().build());
  const auto calibrate = [](const ModelFile& draft) -> Result<Calibration> {
    const ModelSpec& spec = draft.spec();
    Calibration calibration;
    calibration.kv.assign(static_cast<std::size_t>(spec.layers),
                          unit_kv_calibration(spec.kv_heads, spec.head_dim));
    calibration.roles.assign(5, {backend::ActivationFormat::kA8, 0.0});
    return calibration;
  };
  const auto model = import_gguf(in, out, calibrate, nullptr);
  CHECK(model.ok(), "{}", model.error().message);
  const auto file = MappedFile::open(out);
  return {(*file)->bytes().begin(), (*file)->bytes().end()};
}

const Bytes& seed(std::uint32_t which) {
  static const Bytes kSeeds[] = {
      imported({.value = TensorType::kQ8_0}),
      imported({.architecture = Architecture::kGemma3, .attention = TensorType::kQ5_1, .untied = true}),
  };
  return kSeeds[which % 2];
}

void touch(const backend::PackedWeight& weight, double& sum) {
  std::vector<float> row(static_cast<std::size_t>(weight.cols));
  for (const std::int64_t index : {0, weight.rows - 1}) {
    unpack_row(weight, index, row);
    sum += static_cast<double>(row.back());
  }
}

void touch(const float* values, std::int64_t count, double& sum) {
  if (values != nullptr) sum += static_cast<double>(values[0]) + static_cast<double>(values[count - 1]);
}

/// Reads the ends of everything that the contents point at.
void touch(const FpmContents& contents) {
  const ModelSpec& spec = contents.spec;
  double sum = 0;
  touch(contents.embedding, sum);
  touch(contents.output, sum);
  touch(contents.output_norm, spec.dim, sum);
  for (const LayerWeights& layer : contents.layers) {
    for (const auto& weight : layer.qkv) touch(weight, sum);
    for (const auto& weight : layer.gate_up) touch(weight, sum);
    touch(layer.attention_output, sum);
    touch(layer.down, sum);
    touch(layer.attention_norm, spec.dim, sum);
    touch(layer.ffn_norm, spec.dim, sum);
    touch(layer.kv_scales, spec.kv_heads * kv_scale_columns(spec.head_dim), sum);
    touch(layer.q_norm, spec.head_dim, sum);
    touch(layer.k_norm, spec.head_dim, sum);
    touch(layer.post_attention_norm, spec.dim, sum);
    touch(layer.post_ffn_norm, spec.dim, sum);
    touch(layer.rope.high_sin, std::int64_t{rope_high_rows(spec.context)} * spec.head_dim / 2, sum);
    touch(layer.rope.low_sin, std::int64_t{256} * spec.head_dim / 2, sum);
  }
  volatile double sink = sum;
  static_cast<void>(sink);
}

/// The bytes at a multiple of 64, with nothing after them, so that a read past the end is seen.
class AlignedCopy {
 public:
  explicit AlignedCopy(const Bytes& bytes)
      : data_(static_cast<std::uint8_t*>(::operator new(bytes.size(), std::align_val_t(64)))),
        size_(bytes.size()) {
    std::ranges::copy(bytes, data_);
  }
  ~AlignedCopy() { ::operator delete(data_, std::align_val_t(64)); }
  AlignedCopy(const AlignedCopy&) = delete;
  AlignedCopy& operator=(const AlignedCopy&) = delete;
  std::span<const std::uint8_t> bytes() const { return {data_, size_}; }

 private:
  std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace
}  // namespace fieldprint::weights

/// Starts from sound files, and alters mostly what is not bulk data: header, table, spec and the start of
/// each section.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int random) {
  using namespace fieldprint::weights;
  const auto& seed = fieldprint::weights::seed(random);
  if (size < sizeof(FpmHeader) && seed.size() <= max_size) {
    std::ranges::copy(seed, data);
    size = seed.size();
  }
  if (random % 4 == 0 || size < sizeof(FpmHeader)) return LLVMFuzzerMutate(data, size, max_size);
  // In place and of one length, so that the rest of the file stays where it was.
  FpmHeader header;
  std::memcpy(&header, data, sizeof(header));
  const std::size_t table =
      std::min<std::size_t>(size, sizeof(header) + header.section_count * sizeof(FpmSection));
  const std::size_t window = random % 4 == 1 ? std::min<std::size_t>(size, table + sizeof(FpmSpec)) : size;
  const std::size_t at = (random / 4) * std::size_t{2654435761U} % window;
  const std::size_t length = std::min<std::size_t>(1 + random % 16, size - at);
  LLVMFuzzerMutate(data + at, length, length);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::weights;
  fieldprint::weights::testing::Bytes bytes(data, data + size);
  fieldprint::weights::testing::reseal(bytes);
  const AlignedCopy copy(bytes);
  const auto contents = read_fpm(copy.bytes());
  if (contents) touch(*contents);
  return 0;
}
