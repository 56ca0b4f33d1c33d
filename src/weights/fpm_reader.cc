#include "weights/fpm_reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/thread_pool.h"
#include "exact/format.h"
#include "weights/section_reader.h"

namespace fieldprint::weights {
namespace {

using backend::LinearFormat;
using backend::RopeTable;

constexpr std::array<std::string_view, kSectionKinds> kKindNames = {
    "unknown section", "spec",    "vocabulary", "embedding",        "output",
    "output norm",     "rope",    "local rope", "attention norm",   "qkv",
    "q norm",          "k norm",  "KV scales",  "attention output", "post-attention norm",
    "ffn norm",        "gate/up", "down",       "post-ffn norm",    "manifest"};

// More can never be needed: a layer has at most 14 sections, the model eight.
constexpr std::uint32_t kMaxSections = static_cast<std::uint32_t>(bounds::kMaxLayers) * 14 + 8;

constexpr std::size_t kThreadedBytes = 1 << 20;

Error truncated(std::uint64_t needed, std::uint64_t size) {
  return caller_error(
      fmt::format("the model file is truncated: it has {} of at least {} bytes; copy it again or "
                  "import the model again",
                  size, needed));
}

template <class T>
T load(std::span<const std::uint8_t> bytes, std::uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

std::uint64_t table_end(const FpmHeader& header) {
  return sizeof(FpmHeader) + std::uint64_t{header.section_count} * sizeof(FpmSection);
}

/// The header, when it is one that this program reads.
Result<FpmHeader> read_header(std::span<const std::uint8_t> bytes) {
  if (bytes.size() < kFpmMagic.size() || std::memcmp(bytes.data(), kFpmMagic.data(), kFpmMagic.size()) != 0) {
    const bool gguf = bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
    return caller_error(gguf
                            ? "this is a GGUF file; convert it with `fieldprint model import` first"
                            : "not a .fpm model file (wrong magic); make one with `fieldprint model import`");
  }
  if (bytes.size() < sizeof(FpmHeader)) return truncated(sizeof(FpmHeader), bytes.size());
  const auto header = load<FpmHeader>(bytes, 0);
  if (header.version > kFpmVersion) {
    return caller_error(
        fmt::format("the model file has version {}, newer than this program reads ({}); update "
                    "fieldprint or import the model again",
                    header.version, kFpmVersion));
  }
  if (header.version == 0) return altered("version 0 in the header");
  if (header.version < kFpmVersion) {
    return caller_error(fmt::format(
        "the model file has version {}, older than this program reads ({}); import the model again",
        header.version, kFpmVersion));
  }
  if (header.section_count > kMaxSections) {
    return altered(
        fmt::format("the header claims {} sections, more than {}", header.section_count, kMaxSections));
  }
  if (table_end(header) > bytes.size()) return truncated(table_end(header), bytes.size());
  return header;
}

/// Header, table and size agree with the digest and with each other.
Status check_header(std::span<const std::uint8_t> bytes, const FpmHeader& header) {
  FpmHeader blank = header;
  blank.digest = {};
  const std::span<const std::uint8_t> blank_bytes(reinterpret_cast<const std::uint8_t*>(&blank),
                                                  sizeof(blank));
  const std::uint64_t end = table_end(header);
  const Digest digest =
      Sha256().update(blank_bytes).update(bytes.subspan(sizeof(FpmHeader), end - sizeof(FpmHeader))).finish();
  if (digest != header.digest) return altered("the header or the section table does not match its digest");
  if (header.file_bytes > bytes.size()) return truncated(header.file_bytes, bytes.size());
  if (header.file_bytes < bytes.size()) {
    return altered(fmt::format("{} bytes follow its end", bytes.size() - header.file_bytes));
  }
  std::array<char, 16> canon{};
  std::copy_n(exact::kCanonVersion, sizeof(exact::kCanonVersion), canon.begin());
  if (header.canon != canon) {
    const std::string_view theirs(header.canon.data(), header.canon.size());
    std::string shown;
    for (const char c : theirs.substr(0, theirs.find('\0'))) shown += c >= ' ' && c <= '~' ? c : '?';
    return caller_error(
        fmt::format("the model file was made for numeric contract {}, this program has {}; import the "
                    "model again",
                    shown, exact::kCanonVersion));
  }
  const auto is_zero = [](std::uint8_t byte) { return byte == 0; };
  if (!std::ranges::all_of(header.reserved, is_zero) ||
      !std::ranges::all_of(header.reserved_after_digest, is_zero)) {
    return altered("reserved bytes of the header are not zero");
  }
  return {};
}

/// The table, when its sections stand in order, aligned, with nothing but zeros between them.
Result<std::vector<FpmSection>> read_table(std::span<const std::uint8_t> bytes, const FpmHeader& header) {
  std::vector<FpmSection> table;
  table.reserve(header.section_count);
  std::uint64_t end = table_end(header);
  for (std::uint32_t i = 0; i < header.section_count; ++i) {
    const auto section = load<FpmSection>(bytes, sizeof(FpmHeader) + i * sizeof(FpmSection));
    const std::uint64_t begin = align_section(end);
    if (section.offset != begin || begin > bytes.size() || section.bytes > bytes.size() - begin) {
      return altered(fmt::format("section {} ({}) does not lie where it should", i, name_of(section)));
    }
    const auto gap = bytes.subspan(end, begin - end);
    if (std::ranges::any_of(gap, [](std::uint8_t byte) { return byte != 0; })) {
      return altered(fmt::format("the padding before section {} ({}) is not zero", i, name_of(section)));
    }
    end = begin + section.bytes;
    table.push_back(section);
  }
  if (end != bytes.size())
    return altered(fmt::format("{} bytes follow its last section", bytes.size() - end));
  return table;
}

Status check_digests(std::span<const std::uint8_t> bytes, const std::vector<FpmSection>& table) {
  std::vector<std::uint8_t> matches(table.size(), 0);
  const auto check = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const FpmSection& section = table[static_cast<std::size_t>(i)];
      matches[static_cast<std::size_t>(i)] =
          sha256(bytes.subspan(section.offset, section.bytes)) == section.digest;
    }
  };
  // Hashing is bound by the core and is most of what opening costs; below a millisecond a thread costs more.
  const auto count = static_cast<std::int64_t>(table.size());
  if (bytes.size() < kThreadedBytes) {
    check(0, count);
  } else {
    ThreadPool(2).parallel_for(count, 1, check);
  }
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (matches[i] == 0) {
      return altered(fmt::format("section {} ({}, {} bytes at byte {}) does not match its digest", i,
                                 name_of(table[i]), table[i].bytes, table[i].offset));
    }
  }
  return {};
}

bool between(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value >= low && value <= high;
}

Status check_spec(const FpmSpec& spec) {
  const auto wrong = [](std::string_view field) {
    return altered(fmt::format("the spec's {} is impossible", field));
  };
  if (spec.architecture > static_cast<std::uint32_t>(Architecture::kGemma3)) return wrong("architecture");
  if (spec.gate > static_cast<std::uint32_t>(backend::GateFunction::kGelu)) return wrong("gate function");
  if (!between(spec.layers, 1, bounds::kMaxLayers)) return wrong("layer count");
  if (!between(spec.dim, 1, bounds::kMaxDim) || spec.dim % 32 != 0) return wrong("dim");
  if (!between(spec.hidden, 1, bounds::kMaxDim) || spec.hidden % 32 != 0) return wrong("hidden size");
  if (!between(spec.head_dim, 1, bounds::kMaxHeadDim) || spec.head_dim % 32 != 0) return wrong("head size");
  if (!between(spec.heads, 1, bounds::kMaxHeads) || !between(spec.kv_heads, 1, spec.heads) ||
      spec.heads % spec.kv_heads != 0 || spec.heads / spec.kv_heads > bounds::kMaxGroup ||
      spec.heads * spec.head_dim > bounds::kMaxDim) {
    return wrong("head count");
  }
  if (!between(spec.vocab, 1, bounds::kMaxVocab)) return wrong("vocabulary size");
  if (!between(spec.context, 1, bounds::kMaxContext)) return wrong("context length");
  if (!between(spec.window, 0, bounds::kMaxContext)) return wrong("window");
  const auto positive = [](float x) { return x > 0.0F && x <= exact::kMaxFloat; };
  if (!positive(spec.norm_epsilon)) return wrong("norm epsilon");
  if (!positive(spec.embedding_scale)) return wrong("embedding scale");
  if (!positive(spec.score_scale)) return wrong("score scale");
  return {};
}

bool is_local(const FpmSpec& spec, std::int32_t layer) {
  return ((spec.local_layers[static_cast<std::size_t>(layer / 8)] >> (layer % 8)) & 1) != 0;
}

ModelSpec to_model_spec(const FpmSpec& spec) {
  ModelSpec out;
  out.architecture = static_cast<Architecture>(spec.architecture);
  out.name = std::string(spec.name.data(), std::ranges::find(spec.name, '\0'));
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
  out.gate = static_cast<backend::GateFunction>(spec.gate);
  return out;
}

LayerWeights read_layer(SectionReader& in, const ModelSpec& spec, std::int32_t layer, bool local) {
  const std::int64_t dim = spec.dim;
  const std::int64_t head_dim = spec.head_dim;
  const std::int64_t attention = spec.heads * head_dim;
  LayerWeights out;
  out.local = local;
  out.attention_norm = in.floats(SectionKind::kAttentionNorm, layer, 1, dim);
  out.qkv = in.parts(SectionKind::kQkv, layer, attention + 2 * spec.kv_heads * head_dim, dim);
  out.q_norm = in.floats_if_present(SectionKind::kQNorm, layer, head_dim);
  out.k_norm = in.floats_if_present(SectionKind::kKNorm, layer, head_dim);
  out.kv_scales = in.kv_scales(layer, spec.kv_heads, head_dim);
  out.attention_output = in.matrix(SectionKind::kAttentionOutput, layer, dim, attention);
  out.post_attention_norm = in.floats_if_present(SectionKind::kPostAttentionNorm, layer, dim);
  out.ffn_norm = in.floats(SectionKind::kFfnNorm, layer, 1, dim);
  out.gate_up = in.parts(SectionKind::kGateUp, layer, 2 * std::int64_t{spec.hidden}, dim);
  out.down = in.matrix(SectionKind::kDown, layer, dim, spec.hidden);
  out.post_ffn_norm = in.floats_if_present(SectionKind::kPostFfnNorm, layer, dim);
  return out;
}

Status read_layers(SectionReader& in, const FpmSpec& stored, FpmContents& out) {
  const std::int64_t half = stored.head_dim / 2;
  const std::int64_t rows = rope_high_rows(stored.context);
  const RopeTable global = in.rope(SectionKind::kRope, rows, half);
  const bool has_local = in.next_is(SectionKind::kLocalRope, -1);
  const RopeTable local = has_local ? in.rope(SectionKind::kLocalRope, rows, half) : RopeTable{};
  for (std::int32_t layer = 0; layer < stored.layers && !in.error(); ++layer) {
    const bool layer_is_local = is_local(stored, layer);
    if (layer_is_local && stored.window == 0) return altered("a local layer in a model without a window");
    out.layers.push_back(read_layer(in, out.spec, layer, layer_is_local));
    out.layers.back().rope = layer_is_local && has_local ? local : global;
  }
  return {};
}

/// Whether it can be parsed, and printed without running out of stack: the library prints recursively.
bool is_manifest(std::string_view text) {
  constexpr int kDeepest = 16;
  bool shallow = true;
  const auto look = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    shallow = shallow && depth <= kDeepest;
    return shallow;
  };
  return nlohmann::json::parse(text, look, false).is_object() && shallow;
}

Status read_sections(std::span<const std::uint8_t> bytes, const std::vector<FpmSection>& table,
                     FpmContents& out) {
  SectionReader in(bytes, table);
  const auto stored_bytes = in.raw(SectionKind::kSpec);
  if (in.error()) return *in.error();
  if (stored_bytes.size() != sizeof(FpmSpec)) return altered("section spec has a wrong size");
  const auto stored = load<FpmSpec>(stored_bytes, 0);
  if (Status status = check_spec(stored); !status) return status;
  out.spec = to_model_spec(stored);

  const auto vocabulary_bytes = in.raw(SectionKind::kVocabulary);
  out.embedding = in.matrix(SectionKind::kEmbedding, -1, stored.vocab, stored.dim);
  const bool untied = in.next_is(SectionKind::kOutput, -1);
  out.output = untied ? in.matrix(SectionKind::kOutput, -1, stored.vocab, stored.dim) : out.embedding;
  out.output_norm = in.floats(SectionKind::kOutputNorm, -1, 1, stored.dim);
  if (Status status = read_layers(in, stored, out); !status) return status;
  const auto manifest = in.raw(SectionKind::kManifest);
  if (in.error()) return *in.error();
  if (!in.at_end()) return altered("it has sections after the manifest");
  out.manifest.assign(reinterpret_cast<const char*>(manifest.data()), manifest.size());
  if (!is_manifest(out.manifest)) return altered("its manifest is no JSON object");

  auto vocabulary = tokenizer::parse(vocabulary_bytes);
  if (!vocabulary) return vocabulary.error();
  if (vocabulary->tokens.size() != static_cast<std::size_t>(stored.vocab)) {
    return altered(
        fmt::format("the vocabulary has {} tokens, the spec {}", vocabulary->tokens.size(), stored.vocab));
  }
  out.vocabulary = std::move(*vocabulary);
  return {};
}

}  // namespace

std::string section_name(SectionKind kind, std::int32_t layer, std::uint32_t part) {
  const auto index = static_cast<std::uint32_t>(kind);
  const std::string_view name = kKindNames[index < kSectionKinds ? index : 0];
  std::string out = layer < 0 ? std::string(name) : fmt::format("layer {} {}", layer, name);
  if (part != 0) out += fmt::format(" part {}", part);
  return out;
}

std::int64_t padded_rows(std::int64_t rows) {
  return (rows + exact::kTileRows - 1) / exact::kTileRows * exact::kTileRows;
}

std::int64_t matrix_bytes(LinearFormat format, std::int64_t rows, std::int64_t cols) {
  const std::int64_t padded = padded_rows(rows);
  if (format == LinearFormat::kW8R) return padded * cols + 4 * padded;
  return padded / exact::kTileRows * (cols / exact::kBlockCols) * exact::kW4TileBlockBytes;
}

std::int32_t rope_high_rows(std::int32_t context) {
  return (context + exact::kRopeLow - 1) / exact::kRopeLow;
}

Result<FpmContents> read_fpm(std::span<const std::uint8_t> bytes) {
  const auto header = read_header(bytes);
  if (!header) return header.error();
  if (Status status = check_header(bytes, *header); !status) return status.error();
  const auto table = read_table(bytes, *header);
  if (!table) return table.error();
  if (Status status = check_digests(bytes, *table); !status) return status.error();
  FpmContents out;
  out.digest = header->digest;
  if (Status status = read_sections(bytes, *table, out); !status) return status.error();
  return out;
}

}  // namespace fieldprint::weights
