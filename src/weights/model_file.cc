#include "weights/model_file.h"

#include <utility>

#include "weights/fpm_reader.h"
#include "weights/mapped_file.h"

namespace fieldprint::weights {

struct ModelFile::State {
  FpmContents contents;
  std::shared_ptr<const void> memory;
  std::int64_t bytes;
};

ModelFile::ModelFile(State state) : state_(std::make_unique<State>(std::move(state))) {}
ModelFile::~ModelFile() = default;

Result<std::unique_ptr<ModelFile>> ModelFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  auto contents = read_fpm((*file)->bytes());
  if (!contents) return Error{contents.error().kind, fmt::format("{}: {}", path, contents.error().message)};
  const std::int64_t bytes = static_cast<std::int64_t>((*file)->bytes().size());
  return make(std::move(*contents), std::move(*file), bytes);
}

std::unique_ptr<ModelFile> ModelFile::make(FpmContents contents, std::shared_ptr<const void> memory,
                                           std::int64_t bytes) {
  return std::unique_ptr<ModelFile>(new ModelFile({std::move(contents), std::move(memory), bytes}));
}

const Digest& ModelFile::digest() const { return state_->contents.digest; }
const ModelSpec& ModelFile::spec() const { return state_->contents.spec; }
const std::vector<LayerWeights>& ModelFile::layers() const { return state_->contents.layers; }
const backend::PackedWeight& ModelFile::embedding() const { return state_->contents.embedding; }
const backend::PackedWeight& ModelFile::output() const { return state_->contents.output; }
const float* ModelFile::output_norm() const { return state_->contents.output_norm; }
const tokenizer::Vocabulary& ModelFile::vocabulary() const { return state_->contents.vocabulary; }
const std::string& ModelFile::manifest() const { return state_->contents.manifest; }
std::int64_t ModelFile::file_bytes() const { return state_->bytes; }

}  // namespace fieldprint::weights
