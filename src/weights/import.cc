#include "weights/import.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <utility>

#include "exact/format.h"
#include "weights/fpm_reader.h"
#include "weights/fpm_writer.h"
#include "weights/gguf_model.h"
#include "weights/rope_table.h"

namespace fieldprint::weights {
namespace {

using backend::ActivationFormat;
using backend::LinearFormat;
using Json = nlohmann::json;

constexpr std::size_t kRoles = 5;
constexpr std::array<std::string_view, kRoles> kRoleNames = {"qkv", "attention_output", "gate_up", "down",
                                                             "output"};
constexpr std::int64_t kHashChunk = 1 << 24;

std::span<const std::uint8_t> bytes_of(std::span<const float> values) {
  return {reinterpret_cast<const std::uint8_t*>(values.data()), values.size_bytes()};
}
std::span<const std::uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string_view format_name(LinearFormat format) { return format == LinearFormat::kW8R ? "w8r" : "w4g32"; }
std::string_view activation_name(std::uint8_t activation) {
  constexpr std::array<std::string_view, 3> kNames = {"a8", "a16", "a8g32"};
  return kNames[activation];
}

LinearRole role_of(SectionKind kind) {
  switch (kind) {
    case SectionKind::kQkv:
      return LinearRole::kQkv;
    case SectionKind::kAttentionOutput:
      return LinearRole::kAttentionOutput;
    case SectionKind::kGateUp:
      return LinearRole::kGateUp;
    case SectionKind::kDown:
      return LinearRole::kDown;
    default:
      return LinearRole::kOutput;
  }
}

/// Where a matrix or a float section of the file comes from.
struct PlannedSection {
  SectionKind kind{};
  std::int32_t layer = -1;
  std::uint32_t part = 0;
  MatrixStack stack{};  ///< of a matrix
  LinearFormat format = LinearFormat::kW8R;
  const GgufTensor* norm = nullptr;  ///< of a norm
};

/// Everything between the rotary tables and the manifest, and the embedding, in file order.
class Plan {
 public:
  static Result<Plan> make(const GgufModel& model) {
    Plan plan;
    plan.head_.push_back({.kind = SectionKind::kEmbedding, .stack = {model.embedding}});
    if (!model.tied) {
      const auto format = packed_format(*model.output.tensor);
      if (!format) return format.error();
      plan.head_.push_back({.kind = SectionKind::kOutput, .stack = {model.output}, .format = *format});
    }
    plan.head_.push_back({.kind = SectionKind::kOutputNorm, .norm = model.output_norm});
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
      const Status status = plan.add_layer(model.layers[i], static_cast<std::int32_t>(i));
      if (!status) return status.error();
    }
    return plan;
  }

  const std::vector<PlannedSection>& head() const { return head_; }
  const std::vector<PlannedSection>& layers() const { return layers_; }

 private:
  Status add_layer(const GgufLayer& layer, std::int32_t index) {
    add_norm(SectionKind::kAttentionNorm, index, layer.attention_norm);
    if (Status status = add_matrix(SectionKind::kQkv, index, {layer.query, layer.key, layer.value});
        !status) {
      return status;
    }
    add_norm(SectionKind::kQNorm, index, layer.q_norm);
    add_norm(SectionKind::kKNorm, index, layer.k_norm);
    layers_.push_back({.kind = SectionKind::kKvScales, .layer = index});
    if (Status status = add_matrix(SectionKind::kAttentionOutput, index, {layer.attention_output}); !status) {
      return status;
    }
    add_norm(SectionKind::kPostAttentionNorm, index, layer.post_attention_norm);
    add_norm(SectionKind::kFfnNorm, index, layer.ffn_norm);
    if (Status status = add_matrix(SectionKind::kGateUp, index, {layer.gate, layer.up}); !status)
      return status;
    if (Status status = add_matrix(SectionKind::kDown, index, {layer.down}); !status) return status;
    add_norm(SectionKind::kPostFfnNorm, index, layer.post_ffn_norm);
    return {};
  }

  void add_norm(SectionKind kind, std::int32_t layer, const GgufTensor* norm) {
    if (norm != nullptr) layers_.push_back({.kind = kind, .layer = layer, .norm = norm});
  }

  /// One matrix for neighbours of one format.
  Status add_matrix(SectionKind kind, std::int32_t layer, const MatrixStack& stack) {
    std::uint32_t part = 0;
    for (const LogicalMatrix& matrix : stack) {
      const auto format = packed_format(*matrix.tensor);
      if (!format) return format.error();
      if (part > 0 && layers_.back().format == *format) {
        layers_.back().stack.push_back(matrix);
      } else {
        layers_.push_back({.kind = kind, .layer = layer, .part = part, .stack = {matrix}, .format = *format});
        ++part;
      }
    }
    return {};
  }

  std::vector<PlannedSection> head_;
  std::vector<PlannedSection> layers_;
};

/// One import, in the order of the file.
class Importer {
 public:
  Importer(const GgufFile& source, const GgufModel& model, const Plan& plan, const ImportProgress& progress)
      : source_(source), model_(model), plan_(plan), progress_(progress) {
    source_bytes_ = static_cast<std::int64_t>(source.file->bytes().size());
    // The source is read once to hash it and once to convert it.
    total_bytes_ = 2 * source_bytes_;
  }

  Status run(const std::string& out, const tokenizer::Vocabulary& vocabulary, const Calibrate& calibrate) {
    auto writer = FpmWriter::create(out, section_count());
    if (!writer) return writer.error();
    writer_ = std::move(*writer);
    hash_source();
    if (Status status = write_draft(vocabulary); !status) return status;
    if (Status status = apply_calibration(calibrate); !status) return status;
    if (Status status = writer_->commit(); !status) return status;
    report(total_bytes_ - done_bytes_);
    return {};
  }

 private:
  std::uint32_t section_count() const {
    const std::size_t fixed =
        model_.local_rope_frequencies.empty() ? 4 : 5;  // spec, vocabulary, ropes, manifest
    return static_cast<std::uint32_t>(fixed + plan_.head().size() + plan_.layers().size());
  }

  void report(std::int64_t bytes) {
    done_bytes_ = std::min(done_bytes_ + bytes, total_bytes_);
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  void hash_source() {
    Sha256 hash;
    const auto bytes = source_.file->bytes();
    for (std::int64_t at = 0; at < source_bytes_; at += kHashChunk) {
      const std::int64_t size = std::min(kHashChunk, source_bytes_ - at);
      const auto chunk = bytes.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(size));
      hash.update(chunk);
      source_.file->forget(chunk);
      report(size);
    }
    source_digest_ = hash.finish();
  }

  Status write_draft(const tokenizer::Vocabulary& vocabulary) {
    const FpmSpec spec = stored_spec();
    const std::span<const std::uint8_t> spec_bytes(reinterpret_cast<const std::uint8_t*>(&spec),
                                                   sizeof(spec));
    if (Status status = add_raw(SectionKind::kSpec, spec_bytes); !status) return status;
    if (Status status = add_raw(SectionKind::kVocabulary, bytes_of(tokenizer::serialize(vocabulary)));
        !status) {
      return status;
    }
    for (const PlannedSection& section : plan_.head()) {
      if (Status status = add_planned(section); !status) return status;
    }
    if (Status status = add_rope(SectionKind::kRope, model_.rope_frequencies); !status) return status;
    if (!model_.local_rope_frequencies.empty()) {
      if (Status status = add_rope(SectionKind::kLocalRope, model_.local_rope_frequencies); !status)
        return status;
    }
    for (const PlannedSection& section : plan_.layers()) {
      if (Status status = add_planned(section); !status) return status;
    }
    if (Status status = add_raw(SectionKind::kManifest, bytes_of("{}")); !status) return status;
    return writer_->seal();
  }

  FpmSpec stored_spec() const {
    const ModelSpec& spec = model_.spec;
    FpmSpec out{};
    out.architecture = static_cast<std::uint32_t>(spec.architecture);
    out.layers = spec.layers;
    out.dim = spec.dim;
    out.hidden = spec.hidden;
    out.heads = spec.heads;
    out.kv_heads = spec.kv_heads;
    out.head_dim = spec.head_dim;
    out.vocab = spec.vocab;
    out.context = spec.context;
    out.window = spec.window;
    out.norm_epsilon = spec.norm_epsilon;
    out.embedding_scale = spec.embedding_scale;
    out.score_scale = spec.score_scale;
    out.gate = static_cast<std::uint32_t>(spec.gate);
    for (std::size_t i = 0; i < model_.layers.size(); ++i) {
      if (model_.layers[i].local) out.local_layers[i / 8] |= static_cast<std::uint8_t>(1U << (i % 8));
    }
    std::string name = spec.name.substr(0, out.name.size());
    while (name.size() == out.name.size() ||
           (!name.empty() && name.size() < spec.name.size() &&
            (static_cast<unsigned char>(spec.name[name.size()]) & 0xC0U) == 0x80U)) {
      name.pop_back();
    }
    std::ranges::copy(name, out.name.begin());
    return out;
  }

  Status add_raw(SectionKind kind, std::span<const std::uint8_t> bytes) {
    return writer_->add({.kind = kind, .layer = -1}, bytes);
  }

  Status add_rope(SectionKind kind, const std::vector<double>& frequencies) {
    const std::int32_t rows = rope_high_rows(model_.spec.context);
    const std::vector<float> table = rope_table(frequencies, rows);
    return writer_->add({.kind = kind, .layer = -1, .rows = rows, .cols = model_.spec.head_dim / 2},
                        bytes_of(table));
  }

  Status add_planned(const PlannedSection& section) {
    if (section.kind == SectionKind::kKvScales) {
      const ModelSpec& spec = model_.spec;
      return writer_->add(
          {.kind = section.kind,
           .layer = section.layer,
           .rows = spec.kv_heads,
           .cols = static_cast<std::int32_t>(kv_scale_columns(spec.head_dim))},
          bytes_of(kv_scale_section(unit_kv_calibration(spec.kv_heads, spec.head_dim), spec.score_scale)));
    }
    return section.norm != nullptr ? add_norm(section) : add_matrix(section);
  }

  Status add_norm(const PlannedSection& section) {
    const GgufTensor& norm = *section.norm;
    std::vector<float> values(static_cast<std::size_t>(norm.columns()));
    dequantize_row(norm.type, norm.data, values);
    for (const float value : values) {
      if (!std::isfinite(value)) {
        return caller_error(fmt::format(
            "tensor {} holds a value that is not finite; fetch or convert the model again", norm.name));
      }
    }
    report(static_cast<std::int64_t>(norm.data.size()));
    return writer_->add({.kind = section.kind,
                         .layer = section.layer,
                         .rows = 1,
                         .cols = static_cast<std::int32_t>(norm.columns())},
                        bytes_of(values));
  }

  Status add_matrix(const PlannedSection& section) {
    TilePacker packer(section.stack, section.format);
    const auto activation =
        section.format == LinearFormat::kW8R ? ActivationFormat::kA16 : ActivationFormat::kA8G32;
    Status begun = writer_->begin({.kind = section.kind,
                                   .layer = section.layer,
                                   .part = section.part,
                                   .format = static_cast<std::uint8_t>(section.format),
                                   .activation = static_cast<std::uint8_t>(activation),
                                   .rows = static_cast<std::int32_t>(packer.rows()),
                                   .cols = static_cast<std::int32_t>(packer.columns())});
    if (!begun) return begun;
    const std::int64_t source_bytes = stack_bytes(section.stack);
    for (std::int64_t tile = 0; tile < packer.tiles(); ++tile) {
      const auto bytes = packer.pack(tile);
      if (!bytes) return bytes.error();
      if (Status status = writer_->append(*bytes); !status) return status;
      report(source_bytes * (tile + 1) / packer.tiles() - source_bytes * tile / packer.tiles());
    }
    if (Status status = writer_->append(bytes_of(packer.row_scales())); !status) return status;
    writer_->end();
    for (const LogicalMatrix& matrix : section.stack) source_.file->forget(matrix.tensor->data);
    describe(section, packer.error());
    return {};
  }

  static std::int64_t stack_bytes(const MatrixStack& stack) {
    std::int64_t bytes = 0;
    for (const LogicalMatrix& matrix : stack) bytes += static_cast<std::int64_t>(matrix.tensor->data.size());
    return bytes;
  }

  void describe(const PlannedSection& section, const PackError& error) {
    Json sources = Json::array();
    for (const LogicalMatrix& matrix : section.stack) {
      sources.push_back({{"name", matrix.tensor->name}, {"type", traits_of(matrix.tensor->type).name}});
    }
    const double relative =
        error.squared_weight > 0 ? std::sqrt(error.squared_error / error.squared_weight) : 0.0;
    tensors_.push_back({{"section", writer_->sections().size() - 1},
                        {"name", section_name(section.kind, section.layer, section.part)},
                        {"format", format_name(section.format)},
                        {"rows", writer_->sections().back().rows},
                        {"cols", writer_->sections().back().cols},
                        {"source", std::move(sources)},
                        {"relative_error", relative}});
  }

  Status apply_calibration(const Calibrate& calibrate) {
    Result<Calibration> calibration = run_calibration(calibrate);
    if (!calibration) return calibration.error();
    CHECK(calibration->kv.size() == model_.layers.size() && calibration->roles.size() == kRoles,
          "the calibration has the wrong shape");
    for (std::size_t i = 0; i < writer_->sections().size(); ++i) {
      const FpmSection section = writer_->sections()[i];
      if (section.kind == SectionKind::kKvScales) {
        const std::vector<float> scales = kv_scale_section(
            calibration->kv[static_cast<std::size_t>(section.layer)], model_.spec.score_scale);
        if (!kv_scales_fit(scales, model_.spec.kv_heads, model_.spec.head_dim)) {
          return caller_error(fmt::format(
              "layer {}: its keys, values or attention scale are too large or too small to be quantised",
              section.layer));
        }
        if (Status status = writer_->replace(i, bytes_of(scales)); !status) return status;
      }
      if (is_matrix(section.kind) && section.format == static_cast<std::uint8_t>(LinearFormat::kW8R)) {
        const auto format = calibration->roles[static_cast<std::size_t>(role_of(section.kind))].format;
        CHECK(format != ActivationFormat::kA8G32, "w8r takes activations with a scale per token");
        writer_->set_activation(i, static_cast<std::uint8_t>(format));
      }
    }
    return writer_->replace(writer_->sections().size() - 1, bytes_of(manifest(*calibration)));
  }

  Result<Calibration> run_calibration(const Calibrate& calibrate) {
    const auto draft = ModelFile::open(writer_->temporary_path());
    if (!draft) return draft.error();
    return calibrate(**draft);
  }

  std::string manifest(const Calibration& calibration) {
    const ModelSpec& spec = model_.spec;
    for (Json& tensor : tensors_) {
      const std::size_t index = tensor["section"].get<std::size_t>();
      tensor["activation"] = activation_name(writer_->sections()[index].activation);
    }
    Json roles = Json::object();
    for (std::size_t i = 0; i < kRoles; ++i) {
      const auto& [format, divergence] = calibration.roles[i];
      roles[std::string(kRoleNames[i])] = {{"activation", activation_name(static_cast<std::uint8_t>(format))},
                                           {"divergence_nats_per_token", divergence}};
    }
    const Json out = {
        {"canon", exact::kCanonVersion},
        {"format_version", kFpmVersion},
        {"source", {{"sha256", to_hex(source_digest_)}, {"bytes", source_bytes_}}},
        {"model",
         {{"architecture", spec.architecture == Architecture::kGemma3 ? "gemma3" : "llama"},
          {"name", spec.name},
          {"layers", spec.layers},
          {"dim", spec.dim},
          {"hidden", spec.hidden},
          {"heads", spec.heads},
          {"kv_heads", spec.kv_heads},
          {"head_dim", spec.head_dim},
          {"vocab", spec.vocab},
          {"context", spec.context},
          {"window", spec.window},
          {"norm_epsilon", spec.norm_epsilon},
          {"tied_output", model_.tied}}},
        {"roles", std::move(roles)},
        {"tensors", tensors_},
    };
    // A name from the file may be no UTF-8.
    return out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  }

  const GgufFile& source_;
  const GgufModel& model_;
  const Plan& plan_;
  const ImportProgress& progress_;
  std::int64_t source_bytes_ = 0;
  std::int64_t total_bytes_ = 0;
  std::int64_t done_bytes_ = 0;
  Digest source_digest_{};
  std::unique_ptr<FpmWriter> writer_;
  Json tensors_ = Json::array();
};

Error with_path(const std::string& path, const Error& error) {
  return {error.kind, fmt::format("{}: {}", path, error.message)};
}

}  // namespace

Result<std::unique_ptr<ModelFile>> import_gguf(const std::string& gguf, const std::string& out,
                                               const Calibrate& calibrate, const ImportProgress& progress) {
  const auto source = GgufFile::open(gguf);
  if (!source) return source.error();
  std::error_code missing;
  if (std::filesystem::equivalent(gguf, out, missing)) {
    return caller_error(fmt::format("{} is the file to be imported; choose another path for the model", out));
  }
  const auto model = read_gguf_model(source->gguf);
  if (!model) return with_path(gguf, model.error());
  const auto vocabulary = read_gguf_vocabulary(source->gguf);
  if (!vocabulary) return with_path(gguf, vocabulary.error());
  if (vocabulary->tokens.size() != static_cast<std::size_t>(model->spec.vocab)) {
    return caller_error(fmt::format("{}: {} tokens, but embeddings for {}; convert the model again", gguf,
                                    vocabulary->tokens.size(), model->spec.vocab));
  }
  const auto plan = Plan::make(*model);
  if (!plan) return with_path(gguf, plan.error());
  if (Status status = Importer(*source, *model, *plan, progress).run(out, *vocabulary, calibrate); !status) {
    return status.error();
  }
  return ModelFile::open(out);
}

}  // namespace fieldprint::weights
