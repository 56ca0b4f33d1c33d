#include "weights/import.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/folder_testing.h"
#include "weights/float_weights.h"
#include "weights/fpm_reader.h"
#include "weights/fpm_test_seal.h"
#include "weights/gguf.h"
#include "weights/gguf_test_builder.h"

namespace fieldprint::weights {
namespace {

using backend::ActivationFormat;
using backend::LinearFormat;
using testing::Bytes;
using testing::TinyModel;
using testing::write_file;

#define EXPECT_NAMES(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Result<Calibration> calibrate_nothing(const ModelFile& draft) {
  const ModelSpec& spec = draft.spec();
  Calibration out;
  out.kv.assign(static_cast<std::size_t>(spec.layers), unit_kv_calibration(spec.kv_heads, spec.head_dim));
  out.roles.assign(5, {ActivationFormat::kA16, 0.0});
  return out;
}

class Import : public FolderTest {
 protected:
  Result<std::unique_ptr<ModelFile>> import_tiny(const TinyModel& model, const std::string& out,
                                                 const Calibrate& calibrate = calibrate_nothing) {
    write_file(path("tiny.gguf"), model.builder().build());
    return import_gguf(path("tiny.gguf"), path(out), calibrate, nullptr);
  }
  std::string open_error(const Bytes& bytes) {
    write_file(path("altered.fpm"), bytes);
    const auto model = ModelFile::open(path("altered.fpm"));
    return model ? "" : model.error().message;
  }
};

TEST_F(Import, TwoImportsGiveTheSameBytes) {
  for (const Architecture architecture : {Architecture::kLlama, Architecture::kGemma3}) {
    const auto first = import_tiny({.architecture = architecture}, "a.fpm");
    const auto second = import_tiny({.architecture = architecture}, "b.fpm");
    ASSERT_TRUE(first.ok()) << first.error().message;
    ASSERT_TRUE(second.ok());
    EXPECT_EQ((*first)->digest(), (*second)->digest());
    EXPECT_EQ(read_file(path("a.fpm")), read_file(path("b.fpm")));
  }
}

TEST_F(Import, NeighboursOfOneFormatBecomeOneMatrix) {
  const auto model = import_tiny({.value = TensorType::kQ8_0}, "a.fpm");
  ASSERT_TRUE(model.ok()) << model.error().message;
  const LayerWeights& layer = (*model)->layers()[0];
  ASSERT_EQ(layer.qkv.size(), 2U);
  EXPECT_EQ(layer.qkv[0].rows, 96);
  EXPECT_EQ(layer.qkv[0].format, LinearFormat::kW4G32);
  EXPECT_EQ(layer.qkv[1].rows, 32);
  EXPECT_EQ(layer.qkv[1].format, LinearFormat::kW8R);
  ASSERT_EQ(layer.gate_up.size(), 1U);
  EXPECT_EQ(layer.gate_up[0].rows, 192);
  EXPECT_EQ((*model)->embedding().format, LinearFormat::kW8R);
  EXPECT_EQ((*model)->output().data, (*model)->embedding().data);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(layer.down.data) % 64, 0U);
  EXPECT_EQ((*model)->vocabulary().tokens.size(), 32U);
}

TEST_F(Import, AnUntiedOutputIsKept) {
  const auto model = import_tiny({.untied = true}, "a.fpm");
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_NE((*model)->output().data, (*model)->embedding().data);
}

TEST_F(Import, EveryTensorTypeIsTaken) {
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0,
                                TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ5_0, TensorType::kQ5_1}) {
    const auto model =
        import_tiny({.attention = type, .value = type, .feed_forward = type, .embedding = type}, "a.fpm");
    ASSERT_TRUE(model.ok()) << traits_of(type).name << ": " << model.error().message;
  }
}

TEST_F(Import, TheCalibrationIsWrittenAndNothingElseChanges) {
  const TinyModel tiny{.architecture = Architecture::kGemma3, .attention = TensorType::kQ5_0};
  bool draft_was_plain = false;
  const auto calibrate = [&](const ModelFile& draft) -> Result<Calibration> {
    const LayerWeights& layer = draft.layers()[3];
    const backend::KvScales scales = kv_scales_of(layer.kv_scales, 1, 32);
    draft_was_plain = scales.k_offset[5] == 0.0F && scales.k_inverse[5] == 1.0F &&
                      scales.q_factor[5] == draft.spec().score_scale && scales.v_scale[31] == 1.0F &&
                      scales.sink[backend::kSinkValueScale] == 1.0F &&
                      layer.attention_output.activation == ActivationFormat::kA16;
    auto out = calibrate_nothing(draft);
    out->kv[3].k_offset[5] = -7.0F;
    out->kv[3].k_scale[5] = 3.0F;
    out->kv[3].v_scale[31] = 5.0F;
    out->kv[3].sink_factor = {6.0F, 0.75F};
    out->roles[static_cast<std::size_t>(LinearRole::kAttentionOutput)] = {ActivationFormat::kA8, 0.25};
    return out;
  };
  const auto plain = import_tiny(tiny, "plain.fpm");
  const auto model = import_tiny(tiny, "a.fpm", calibrate);
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_TRUE(draft_was_plain);
  const backend::KvScales scales = kv_scales_of((*model)->layers()[3].kv_scales, 1, 32);
  EXPECT_EQ(scales.k_offset[5], -7.0F);
  EXPECT_EQ(scales.k_inverse[5], 1.0F / 3.0F);
  EXPECT_EQ(scales.q_factor[5], 3.0F * (*model)->spec().score_scale);
  EXPECT_EQ(scales.v_inverse[31], 1.0F / 5.0F);
  EXPECT_EQ(scales.v_scale[31], 5.0F);
  EXPECT_EQ(scales.sink[backend::kSinkKeyInverse], 1.0F / 6.0F);
  EXPECT_EQ(scales.sink[backend::kSinkKeyScale], 6.0F);
  EXPECT_EQ(scales.sink[backend::kSinkValueInverse], 1.0F / 0.75F);
  EXPECT_EQ(scales.sink[backend::kSinkValueScale], 0.75F);
  EXPECT_EQ((*model)->layers()[3].attention_output.activation, ActivationFormat::kA8);
  EXPECT_EQ((*model)->layers()[3].down.activation, ActivationFormat::kA8G32);
  EXPECT_EQ((*model)->output().activation, ActivationFormat::kA16);
  EXPECT_NE((*model)->digest(), (*plain)->digest());
  const auto manifest = nlohmann::json::parse((*model)->manifest());
  EXPECT_EQ(manifest["roles"]["attention_output"]["activation"], "a8");
  EXPECT_EQ(manifest["roles"]["attention_output"]["divergence_nats_per_token"], 0.25);
}

TEST_F(Import, AFailedCalibrationLeavesNoFile) {
  const auto model = import_tiny(
      {}, "a.fpm", [](const ModelFile&) -> Result<Calibration> { return environment_error("stopped"); });
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().message, "stopped");
  EXPECT_EQ(files(), 1U);
}

TEST_F(Import, AFullDiskIsTheEnvironmentsFaultAndLeavesNoFile) {
  write_file(path("tiny.gguf"), TinyModel{}.builder().build());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 30000, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto model = import_gguf(path("tiny.gguf"), path("a.fpm"), calibrate_nothing, nullptr);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().kind, ErrorKind::kEnvironment);
  EXPECT_NAMES(model.error().message, "free space");
  EXPECT_EQ(files(), 1U);
}

TEST_F(Import, MissingInputAndUnwritableOutputAreTold) {
  const auto missing = import_gguf(path("none.gguf"), path("a.fpm"), calibrate_nothing, nullptr);
  EXPECT_EQ(missing.error().kind, ErrorKind::kCaller);
  EXPECT_NAMES(missing.error().message, "none.gguf: No such file");
  const auto nowhere = import_tiny({}, "none/a.fpm");
  EXPECT_EQ(nowhere.error().kind, ErrorKind::kEnvironment);
  EXPECT_NAMES(nowhere.error().message, "none/a.fpm");
  const auto over_folder = import_gguf(path("tiny.gguf"), folder(), calibrate_nothing,
                                       [](std::int64_t, std::int64_t) { FAIL() << "told only after work"; });
  EXPECT_EQ(over_folder.error().kind, ErrorKind::kCaller);
  EXPECT_NAMES(over_folder.error().message, "it is a folder, not a regular file");
}

TEST_F(Import, TheSourceIsNotReplaced) {
  write_file(path("tiny.gguf"), TinyModel{}.builder().build());
  std::filesystem::create_symlink("tiny.gguf", path("link"));
  for (const char* name : {"tiny.gguf", "link"}) {
    const auto over = import_gguf(path("tiny.gguf"), path(name), calibrate_nothing, nullptr);
    ASSERT_FALSE(over.ok());
    EXPECT_EQ(over.error().kind, ErrorKind::kCaller);
    EXPECT_NAMES(over.error().message, "choose another path");
  }
  EXPECT_TRUE(import_gguf(path("tiny.gguf"), path("a.fpm"), calibrate_nothing, nullptr).ok());
}

TEST_F(Import, ProgressEndsAtTheWhole) {
  write_file(path("tiny.gguf"), TinyModel{}.builder().build());
  std::int64_t last = 0;
  std::int64_t total = -1;
  const auto progress = [&](std::int64_t done, std::int64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  };
  ASSERT_TRUE(import_gguf(path("tiny.gguf"), path("a.fpm"), calibrate_nothing, progress).ok());
  EXPECT_EQ(last, total);
}

TEST_F(Import, AnAlteredByteInAnySectionNamesTheSection) {
  ASSERT_TRUE(import_tiny({.architecture = Architecture::kGemma3}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  FpmHeader header;
  std::memcpy(&header, whole.data(), sizeof(header));
  for (std::uint32_t i = 0; i < header.section_count; ++i) {
    FpmSection section;
    std::memcpy(&section, whole.data() + sizeof(header) + i * sizeof(section), sizeof(section));
    for (const std::uint64_t at :
         {section.offset, section.offset + section.bytes / 2, section.offset + section.bytes - 1}) {
      Bytes altered = whole;
      altered[at] ^= 0x10;
      const std::string message = open_error(altered);
      EXPECT_NAMES(message,
                   fmt::format("section {} ({}", i, section_name(section.kind, section.layer, section.part)));
      EXPECT_NAMES(message, "does not match its digest");
    }
  }
}

TEST_F(Import, AnAlteredByteOfHeaderTableOrPaddingIsNoticed) {
  ASSERT_TRUE(import_tiny({}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  FpmHeader header;
  std::memcpy(&header, whole.data(), sizeof(header));
  FpmSection first;
  std::memcpy(&first, whole.data() + sizeof(header), sizeof(first));
  for (std::size_t at = 0; at < first.offset; at += at < sizeof(header) ? 1 : 5) {
    Bytes altered = whole;
    altered[at] ^= 0x01;
    EXPECT_NE(open_error(altered), "") << at;
  }
  Bytes padding = whole;
  padding[first.offset - 1] = 1;
  if (first.offset > sizeof(header) + header.section_count * sizeof(first)) {
    EXPECT_NAMES(open_error(padding), "padding before section 0 (spec)");
  }
}

TEST_F(Import, EveryTruncationIsNamed) {
  ASSERT_TRUE(import_tiny({}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  for (std::size_t size = 8; size < whole.size(); size += size < 200 ? 1 : 311) {
    const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_NAMES(open_error(cut), "truncated");
  }
  Bytes longer = whole;
  longer.push_back(0);
  EXPECT_NAMES(open_error(longer), "1 bytes follow its end");
}

TEST_F(Import, ForeignAndNewerFilesAreNamed) {
  ASSERT_TRUE(import_tiny({}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  EXPECT_NAMES(open_error({'x', 'y'}), "wrong magic");
  EXPECT_NAMES(open_error(read_file(path("tiny.gguf"))), "model import");
  Bytes newer = whole;
  newer[offsetof(FpmHeader, version)] = 3;
  EXPECT_NAMES(open_error(newer), "newer than this program");
  Bytes older = whole;
  older[offsetof(FpmHeader, version)] = 1;
  EXPECT_NAMES(open_error(older), "version 1, older than this program reads (2); import the model again");
  Bytes contract = whole;
  contract[offsetof(FpmHeader, canon) + 6] = '9';
  testing::reseal(contract);
  EXPECT_NAMES(open_error(contract), "numeric contract canon-9");
  EXPECT_NAMES(ModelFile::open(path("none.fpm")).error().message, "No such file");
  EXPECT_NAMES(ModelFile::open(folder()).error().message, "not a regular file");
}

TEST_F(Import, ContentsThatCannotBeAreRefusedWhateverTheDigestsSay) {
  ASSERT_TRUE(import_tiny({}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  FpmSection spec;
  std::memcpy(&spec, whole.data() + sizeof(FpmHeader), sizeof(spec));
  const auto with = [&](std::uint64_t at, std::uint32_t value) {
    Bytes altered = whole;
    std::memcpy(altered.data() + at, &value, sizeof(value));
    testing::reseal(altered);
    return open_error(altered);
  };
  EXPECT_NAMES(with(spec.offset + offsetof(FpmSpec, layers), 1), "section");
  EXPECT_NAMES(with(spec.offset + offsetof(FpmSpec, layers), 100000), "layer count");
  EXPECT_NAMES(with(spec.offset + offsetof(FpmSpec, heads), 3), "qkv");
  EXPECT_NAMES(with(spec.offset + offsetof(FpmSpec, vocab), 31), "section embedding is not [31]");
  EXPECT_NAMES(with(spec.offset + offsetof(FpmSpec, norm_epsilon), 0x7FC00000), "norm epsilon");
  EXPECT_NAMES(with(spec.offset + offsetof(FpmSpec, context), 2000), "section rope");
  const std::uint64_t embedding = sizeof(FpmHeader) + 2 * sizeof(FpmSection);
  EXPECT_NAMES(with(embedding + offsetof(FpmSection, format), 1), "weight format 1");
  EXPECT_NAMES(with(embedding + offsetof(FpmSection, offset), 64), "does not lie where it should");
}

TEST_F(Import, ScalesOfKeysAndValuesAreFiniteAndPositiveWhateverTheDigestsSay) {
  ASSERT_TRUE(import_tiny({}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  FpmHeader header;
  std::memcpy(&header, whole.data(), sizeof(header));
  FpmSection scales;
  for (std::uint32_t i = 0; i < header.section_count && scales.kind != SectionKind::kKvScales; ++i) {
    std::memcpy(&scales, whole.data() + sizeof(header) + i * sizeof(scales), sizeof(scales));
  }
  ASSERT_EQ(scales.bytes, (5 * 32 + 4) * 4U);
  const auto with = [&](std::uint64_t index, float value) {
    Bytes altered = whole;
    std::memcpy(altered.data() + scales.offset + 4 * index, &value, sizeof(value));
    testing::reseal(altered);
    return open_error(altered);
  };
  EXPECT_EQ(with(31, -1.0F), "");  // the last offset
  EXPECT_NAMES(with(31, NAN), "layer 0 KV scales holds a value that is not finite");
  for (const std::uint64_t index : {32, 64, 96, 128, 160, 163}) {
    EXPECT_EQ(with(index, 0x1p48F), "") << index;
    for (const float value : {0.0F, -1.0F, 0x1p-49F, 0x1p49F}) {
      EXPECT_NAMES(with(index, value), "layer 0 KV scales holds a scale that is not positive");
    }
    EXPECT_NAMES(with(index, INFINITY), "not finite");
  }
}

TEST_F(Import, ScalesThatTheReaderWouldRefuseAreNotWritten) {
  for (const float scale : {0x1p60F, 0x1p-60F, std::numeric_limits<float>::infinity()}) {
    const auto calibrate = [&](const ModelFile& draft) -> Result<Calibration> {
      auto out = calibrate_nothing(draft);
      out->kv[1].k_scale[5] = scale;
      return out;
    };
    const auto model = import_tiny({}, "a.fpm", calibrate);
    ASSERT_FALSE(model.ok());
    EXPECT_NAMES(model.error().message,
                 "layer 1: its keys, values or attention scale are too large or too small");
    EXPECT_EQ(model.error().kind, ErrorKind::kCaller);
  }
}

TEST_F(Import, AManifestThatIsNoJsonObjectIsRefusedWhateverTheDigestsSay) {
  ASSERT_TRUE(import_tiny({}, "a.fpm").ok());
  const Bytes whole = read_file(path("a.fpm"));
  FpmHeader header;
  std::memcpy(&header, whole.data(), sizeof(header));
  FpmSection manifest;
  std::memcpy(&manifest, whole.data() + sizeof(header) + (header.section_count - 1) * sizeof(manifest),
              sizeof(manifest));
  ASSERT_EQ(manifest.kind, SectionKind::kManifest);
  const auto with = [&](std::string text) {
    text.resize(manifest.bytes, ' ');
    Bytes altered = whole;
    std::memcpy(altered.data() + manifest.offset, text.data(), text.size());
    testing::reseal(altered);
    return open_error(altered);
  };
  EXPECT_EQ(with("{}"), "");
  EXPECT_EQ(with(R"({"a": [{"b": 1}]})"), "");
  const std::string deep(manifest.bytes / 2, '[');
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("7"),
        std::string("{\"a\": \"\xff\"}"),
        std::string(R"({"a": )") + std::string(200, '[') + std::string(200, ']') + "}",
        deep + std::string(deep.size(), ']')}) {
    EXPECT_NAMES(with(text), "manifest is no JSON object");
  }
}

void expect_sources_agree(const FloatSource& gguf, const FloatSource& fpm) {
  ASSERT_EQ(gguf.spec().layers, fpm.spec().layers);
  for (std::int32_t layer = 0; layer < gguf.spec().layers; ++layer) {
    EXPECT_EQ(gguf.local(layer), fpm.local(layer));
    for (int role = 0; role <= static_cast<int>(TensorRole::kPostFfnNorm); ++role) {
      const auto of = static_cast<TensorRole>(role);
      if (layer > 0 && of <= TensorRole::kOutputNorm) continue;
      ASSERT_EQ(gguf.has(of, layer), fpm.has(of, layer)) << role;
      const auto expected = gguf.tensor(of, layer);
      const auto actual = fpm.tensor(of, layer);
      ASSERT_EQ(expected.size(), actual.size()) << role;
      if (expected.empty()) continue;
      double error = 0;
      double power = 0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const double difference = static_cast<double>(expected[i]) - static_cast<double>(actual[i]);
        error += difference * difference;
        power += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
      }
      ASSERT_LE(error, 4e-4 * power) << "layer " << layer << " role " << role;
    }
  }
  const backend::RopeTable a = gguf.rope(0);
  const backend::RopeTable b = fpm.rope(0);
  const std::ptrdiff_t pairs = gguf.spec().head_dim / 2;
  EXPECT_TRUE(std::equal(a.low_sin, a.low_sin + 256 * pairs, b.low_sin));
  EXPECT_TRUE(std::equal(a.high_cos, a.high_cos + pairs, b.high_cos));
}

TEST_F(Import, FloatSourcesOfBothFilesAgree) {
  for (const Architecture architecture : {Architecture::kLlama, Architecture::kGemma3}) {
    ASSERT_TRUE(import_tiny({.architecture = architecture, .value = TensorType::kQ8_0}, "a.fpm").ok());
    const auto gguf = FloatSource::open(path("tiny.gguf"));
    const auto fpm = FloatSource::open(path("a.fpm"));
    ASSERT_TRUE(gguf.ok());
    ASSERT_TRUE(fpm.ok());
    expect_sources_agree(**gguf, **fpm);
  }
}

TEST_F(Import, LlamaQueriesAreHalfSplitInFloatSources) {
  write_file(path("tiny.gguf"), TinyModel{.attention = TensorType::kF32}.builder().build());
  const auto file = GgufFile::open(path("tiny.gguf"));
  const auto source = FloatSource::open(path("tiny.gguf"));
  ASSERT_TRUE(source.ok());
  const auto queries = (*source)->tensor(TensorRole::kQuery, 0);
  const GgufTensor* stored = file->gguf.find_tensor("blk.0.attn_q.weight");
  std::vector<float> row(64);
  dequantize_row(stored->type, stored->row(32 + 3), row);  // head 1, second of pair 1
  EXPECT_TRUE(std::equal(row.begin(), row.end(), queries.begin() + (32 + 16 + 1) * 64));
}

class RealModel : public Import, public ::testing::WithParamInterface<const char*> {};

TEST_P(RealModel, ImportsDeterministicallyAndKeepsItsWeights) {
  const char* const gguf = std::getenv(GetParam());
  if (gguf == nullptr) GTEST_SKIP() << "set " << GetParam() << " to the model's GGUF file";
  const auto first = import_gguf(gguf, path("a.fpm"), calibrate_nothing, nullptr);
  ASSERT_TRUE(first.ok()) << first.error().message;
  const auto second = import_gguf(gguf, path("b.fpm"), calibrate_nothing, nullptr);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ((*first)->digest(), (*second)->digest());
  const auto source = FloatSource::open(gguf);
  const auto imported = FloatSource::open(path("a.fpm"));
  ASSERT_TRUE(source.ok());
  ASSERT_TRUE(imported.ok());
  expect_sources_agree(**source, **imported);
}

INSTANTIATE_TEST_SUITE_P(Models, RealModel,
                         ::testing::Values("FIELDPRINT_SMOLLM2_GGUF", "FIELDPRINT_GEMMA3_GGUF"));

}  // namespace
}  // namespace fieldprint::weights
