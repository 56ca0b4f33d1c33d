#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "base/bounds.h"
#include "base/sha256.h"

/// The layout of a .fpm model file, little endian:
///
///   FpmHeader, FpmSection[section_count], then the sections in the table's order, each at the next multiple
///   of 64, the gaps zero, nothing after the last.
///
/// The table holds the SHA-256 of every section. The header's digest is the SHA-256 of header and table with
/// that field zero: it covers the whole file, and is the model's identity.
///
/// The order of sections: spec, vocabulary, embedding, output (if untied), output norm, rope, local rope (if
/// the model has local layers), then each layer's in the order of SectionKind, then the manifest.
namespace fieldprint::weights {

static_assert(std::endian::native == std::endian::little, "a .fpm file is mapped and used in place");

inline constexpr std::array<char, 8> kFpmMagic = {'\x89', 'F', 'P', 'M', '\r', '\n', '\x1a', '\n'};
inline constexpr std::uint32_t kFpmVersion = 2;  ///< 1 held key offsets in place of scales
inline constexpr std::uint64_t kFpmAlignment = 64;

enum class SectionKind : std::uint32_t {
  kSpec = 1,        ///< FpmSpec
  kVocabulary = 2,  ///< tokenizer::serialize
  kEmbedding = 3,   ///< matrix [vocab][dim]
  kOutput = 4,      ///< matrix [vocab][dim], absent where the embedding serves
  kOutputNorm = 5,  ///< float [dim]
  kRope = 6,        ///< rotary tables of global layers
  kLocalRope = 7,   ///< of local layers
  kAttentionNorm = 8,
  kQkv = 9,  ///< one matrix or several, numbered by `part`
  kQNorm = 10,
  kKNorm = 11,
  kKvScales = 12,  ///< float, the layout of kv_scales.h: rows K, columns 5·D + 4
  kAttentionOutput = 13,
  kPostAttentionNorm = 14,
  kFfnNorm = 15,
  kGateUp = 16,  ///< one matrix or two
  kDown = 17,
  kPostFfnNorm = 18,
  kManifest = 19,  ///< JSON
};
inline constexpr std::uint32_t kSectionKinds = 20;

struct FpmHeader {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t section_count;
  std::uint64_t file_bytes;
  std::array<char, 16> canon;  ///< exact::kCanonVersion, padded with zeros
  std::array<std::uint8_t, 24> reserved;
  Digest digest;
  std::array<std::uint8_t, 32> reserved_after_digest;
};
static_assert(std::is_trivially_copyable_v<FpmHeader> && std::is_standard_layout_v<FpmHeader>);
static_assert(sizeof(FpmHeader) == 128 && alignof(FpmHeader) == 8);
static_assert(offsetof(FpmHeader, version) == 8 && offsetof(FpmHeader, section_count) == 12);
static_assert(offsetof(FpmHeader, file_bytes) == 16 && offsetof(FpmHeader, canon) == 24);
static_assert(offsetof(FpmHeader, reserved) == 40 && offsetof(FpmHeader, digest) == 64);

/// A matrix section is the data of a backend::PackedWeight, then (kW8R) float row_scale[tiles·16]. A rope
/// section is float high_cos, high_sin [rows][cols], low_cos, low_sin [256][cols]. Any other float section is
/// [rows][cols].
struct FpmSection {
  SectionKind kind{};
  std::int32_t layer = -1;  ///< -1 for a section of the model as a whole
  std::uint32_t part = 0;
  std::uint8_t format = 0;      ///< backend::LinearFormat of a matrix
  std::uint8_t activation = 0;  ///< backend::ActivationFormat of a matrix
  std::uint16_t reserved = 0;
  std::int32_t rows = 0;
  std::int32_t cols = 0;
  std::uint64_t offset = 0;  ///< from the start of the file
  std::uint64_t bytes = 0;
  Digest digest{};
};
static_assert(std::is_trivially_copyable_v<FpmSection> && std::is_standard_layout_v<FpmSection>);
static_assert(sizeof(FpmSection) == 72 && alignof(FpmSection) == 8);
static_assert(offsetof(FpmSection, layer) == 4 && offsetof(FpmSection, part) == 8);
static_assert(offsetof(FpmSection, format) == 12 && offsetof(FpmSection, activation) == 13);
static_assert(offsetof(FpmSection, rows) == 16 && offsetof(FpmSection, cols) == 20);
static_assert(offsetof(FpmSection, offset) == 24 && offsetof(FpmSection, bytes) == 32);
static_assert(offsetof(FpmSection, digest) == 40);

/// ModelSpec as stored.
struct FpmSpec {
  std::uint32_t architecture;
  std::int32_t layers;
  std::int32_t dim;
  std::int32_t hidden;
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int32_t vocab;
  std::int32_t context;
  std::int32_t window;
  float norm_epsilon;
  float embedding_scale;
  float score_scale;
  std::uint32_t gate;
  std::array<std::uint8_t, bounds::kMaxLayers / 8> local_layers;  ///< bit l%8 of byte l/8: layer l is local
  std::array<char, 136> name;                                     ///< padded with zeros
};
static_assert(std::is_trivially_copyable_v<FpmSpec> && std::is_standard_layout_v<FpmSpec>);
static_assert(sizeof(FpmSpec) == 256 && alignof(FpmSpec) == 4);
static_assert(offsetof(FpmSpec, window) == 36 && offsetof(FpmSpec, gate) == 52);
static_assert(offsetof(FpmSpec, local_layers) == 56 && offsetof(FpmSpec, name) == 120);

inline constexpr std::uint64_t align_section(std::uint64_t offset) {
  return (offset + kFpmAlignment - 1) / kFpmAlignment * kFpmAlignment;
}

inline constexpr bool is_matrix(SectionKind kind) {
  return kind == SectionKind::kEmbedding || kind == SectionKind::kOutput || kind == SectionKind::kQkv ||
         kind == SectionKind::kAttentionOutput || kind == SectionKind::kGateUp || kind == SectionKind::kDown;
}

}  // namespace fieldprint::weights
