#include "weights/gguf.h"

#include <gtest/gtest.h>

#include "weights/gguf_model.h"
#include "weights/gguf_test_builder.h"

namespace fieldprint::weights {
namespace {

using testing::Bytes;
using testing::GgufBuilder;
using testing::TinyModel;

GgufBuilder small() {
  GgufBuilder out;
  out.set_u32("a.count", 7)
      .set_f32("a.real", 1.5F)
      .set_bool("a.flag", true)
      .set_string("a.text", "hello")
      .set_strings("a.texts", {"x", "", "yz"})
      .set_f32s("a.reals", {1.0F, -2.0F})
      .set_i32s("a.integers", {3, -4})
      .tensor("t", {4, 2}, 0, Bytes(32, 1))
      .tensor("u", {32}, 8, Bytes(34, 2));
  return out;
}

std::string parse_error(const Bytes& bytes) {
  const auto gguf = Gguf::parse(bytes);
  if (gguf.ok()) return "";
  EXPECT_EQ(gguf.error().kind, ErrorKind::kCaller);
  return gguf.error().message;
}

std::string model_error(const Bytes& bytes) {
  const auto gguf = Gguf::parse(bytes);
  if (!gguf) return gguf.error().message;
  const auto model = read_gguf_model(*gguf);
  if (!model) return model.error().message;
  const auto vocabulary = read_gguf_vocabulary(*gguf);
  return vocabulary ? "" : vocabulary.error().message;
}

#define EXPECT_NAMES(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

TEST(Gguf, ReadsValuesAndTensorsOfVersions2And3) {
  for (const std::uint32_t version : {2U, 3U}) {
    const Bytes bytes = small().build(version);
    const auto gguf = Gguf::parse(bytes);
    ASSERT_TRUE(gguf.ok()) << gguf.error().message;
    EXPECT_EQ(*gguf->integer("a.count"), 7);
    EXPECT_EQ(*gguf->real("a.real"), 1.5);
    EXPECT_EQ(*gguf->real("a.count"), 7.0);
    EXPECT_TRUE(*gguf->boolean("a.flag"));
    EXPECT_EQ(*gguf->string("a.text"), "hello");
    std::vector<std::string> texts;
    const auto collect = [&](std::string_view text) {
      texts.emplace_back(text);
      return true;
    };
    ASSERT_TRUE(gguf->strings("a.texts", collect).ok());
    EXPECT_EQ(texts, (std::vector<std::string>{"x", "", "yz"}));
    EXPECT_EQ(*gguf->reals("a.reals"), (std::vector<float>{1.0F, -2.0F}));
    EXPECT_EQ(*gguf->integers("a.integers"), (std::vector<std::int64_t>{3, -4}));
    EXPECT_EQ(*gguf->length("a.texts"), 3);
    const GgufTensor* tensor = gguf->find_tensor("t");
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->columns(), 4);
    EXPECT_EQ(tensor->rows(), 2);
    EXPECT_EQ(tensor->row(1)[0], 1);
    EXPECT_EQ(gguf->find_tensor("u")->data[0], 2);
    EXPECT_EQ(gguf->find_tensor("v"), nullptr);
  }
}

TEST(Gguf, MissingKeysAndOtherTypesAreNamed) {
  const Bytes bytes = small().build();
  const auto gguf = Gguf::parse(bytes);
  ASSERT_TRUE(gguf.ok());
  EXPECT_NAMES(gguf->integer("b").error().message, "key b is missing");
  EXPECT_NAMES(gguf->integer("a.text").error().message, "a.text is of type string");
  EXPECT_NAMES(gguf->string("a.count").error().message, "a.count is of type uint32");
  EXPECT_NAMES(gguf->boolean("a.count").error().message, "not a bool");
  EXPECT_NAMES(gguf->real("a.texts").error().message, "an array of string");
  EXPECT_NAMES(gguf->reals("a.integers").error().message, "an array of int32");
  EXPECT_NAMES(gguf->integers("a.texts").error().message, "an array of string");
  EXPECT_NAMES(gguf->length("a.flag").error().message, "not an array");
}

TEST(Gguf, IntegersOfEveryTypeAreReadWithTheirSign) {
  GgufBuilder builder;
  builder.set_raw("u8", 0, {0xFF}).set_raw("i8", 1, {0xFF}).set_raw("i16", 3, {0xFE, 0xFF});
  builder.set_raw("i64", 11, Bytes(8, 0xFF)).set_raw("u64", 10, Bytes(8, 0xFF));
  const Bytes bytes = builder.build();
  const auto gguf = Gguf::parse(bytes);
  ASSERT_TRUE(gguf.ok());
  EXPECT_EQ(*gguf->integer("u8"), 255);
  EXPECT_EQ(*gguf->integer("i8"), -1);
  EXPECT_EQ(*gguf->integer("i16"), -2);
  EXPECT_EQ(*gguf->integer("i64"), -1);
  EXPECT_NAMES(gguf->integer("u64").error().message, "within int64");
}

TEST(Gguf, EveryTruncationIsAnError) {
  const Bytes whole = small().build();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_NE(parse_error(cut), "") << size;
  }
  EXPECT_NAMES(parse_error(Bytes(whole.begin(), whole.end() - 1)), "truncated: tensor u needs 34 bytes");
}

TEST(Gguf, ForeignFilesAndVersionsAreNamed) {
  EXPECT_NAMES(parse_error({'P', 'K', 3, 4, 0, 0, 0, 0}), "not a GGUF file");
  EXPECT_NAMES(parse_error(small().build(1)), "version 1 is not supported");
  EXPECT_NAMES(parse_error(small().build(4)), "version 4 is not supported");
  EXPECT_NAMES(parse_error(small().build(0x03000000)), "big-endian");
}

TEST(Gguf, ImpossibleTensorsAreNamed) {
  const std::uint64_t huge = 1ULL << 62;
  EXPECT_NAMES(parse_error(small().tensor("big", {huge, 4}, 0, {}).build()),
               "tensor big: it is larger than the file");
  EXPECT_NAMES(parse_error(small().tensor("neg", {~0ULL}, 0, {}).build()), "tensor neg: dimension 0 is -1");
  EXPECT_NAMES(parse_error(small().tensor("nil", {0}, 0, {}).build()), "dimension 0 is 0");
  EXPECT_NAMES(parse_error(small().tensor("odd", {33}, 8, Bytes(68)).build()), "tensor odd: 33 columns");
  EXPECT_NAMES(parse_error(small().tensor("five", {1, 1, 1, 1, 1}, 0, Bytes(4)).build()), "5 dimensions");
  EXPECT_NAMES(parse_error(small().tensor("iq", {256}, 16, Bytes(66)).build()),
               "tensor iq has type 16 (IQ2_XXS)");
}

TEST(Gguf, ImpossibleMetadataIsNamed) {
  EXPECT_NAMES(parse_error(small().set_raw("k", 13, {}).build()), "unknown type 13");
  EXPECT_NAMES(parse_error(small().set_raw("k", 8, Bytes(8, 0xFF)).build()), "more than");
  Bytes array = {4, 0, 0, 0};
  array.insert(array.end(), 8, 0x7F);
  EXPECT_NAMES(parse_error(small().set_raw("k", 9, array).build()), "elements, more than");
  EXPECT_NAMES(parse_error(small().set_u32("general.alignment", 12).build()), "general.alignment is 12");
  Bytes nested;
  for (int depth = 0; depth < 6; ++depth) nested.insert(nested.end(), {9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0});
  EXPECT_NAMES(parse_error(small().set_raw("k", 9, nested).build()), "nests arrays deeper");
}

TEST(Gguf, ItsOwnAlignmentIsFollowed) {
  const Bytes bytes = small().set_u32("general.alignment", 128).build(3, 128);
  const auto gguf = Gguf::parse(bytes);
  ASSERT_TRUE(gguf.ok()) << gguf.error().message;
  EXPECT_EQ(gguf->find_tensor("u")->data[33], 2);
}

TEST(GgufModel, ReadsTheHyperParametersOfLlama) {
  const Bytes bytes = TinyModel{}.builder().build();
  const auto gguf = Gguf::parse(bytes);
  ASSERT_TRUE(gguf.ok());
  const auto model = read_gguf_model(*gguf);
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->spec.head_dim, 32);
  EXPECT_EQ(model->spec.embedding_scale, 1.0F);
  EXPECT_FLOAT_EQ(model->spec.score_scale, 1.44269504F / std::sqrt(32.0F));
  EXPECT_EQ(model->spec.gate, backend::GateFunction::kSilu);
  EXPECT_EQ(model->spec.window, 0);
  EXPECT_TRUE(model->tied);
  EXPECT_EQ(model->layers[0].query.order, RowOrder::kInterleaved);
  EXPECT_EQ(model->layers[0].value.order, RowOrder::kPlain);
}

TEST(GgufModel, EverySixthLayerOfGemma3IsGlobal) {
  const Bytes bytes = TinyModel{.architecture = Architecture::kGemma3}.builder().build();
  const auto gguf = Gguf::parse(bytes);
  ASSERT_TRUE(gguf.ok());
  const auto model = read_gguf_model(*gguf);
  ASSERT_TRUE(model.ok()) << model.error().message;
  for (std::size_t i = 0; i < 7; ++i) EXPECT_EQ(model->layers[i].local, i != 5) << i;
  EXPECT_EQ(model->spec.embedding_scale, 8.0F);
  EXPECT_EQ(model->spec.window, 128);
  EXPECT_EQ(model->spec.gate, backend::GateFunction::kGelu);
  EXPECT_EQ(model->layers[0].query.order, RowOrder::kPlain);
  EXPECT_NEAR(model->rope_frequencies[8], std::pow(1e5, -0.5), 1e-15);
  EXPECT_NEAR(model->local_rope_frequencies[8], 0.01, 1e-15);
}

TEST(GgufModel, RopeScalingIsFollowedOrRefused) {
  const auto frequencies = [](const GgufBuilder& builder) {
    const Bytes bytes = builder.build();
    const auto gguf = Gguf::parse(bytes);
    return read_gguf_model(*gguf)->rope_frequencies;
  };
  const auto plain = frequencies(TinyModel{}.builder());
  auto linear = TinyModel{}.builder();
  linear.set_string("llama.rope.scaling.type", "linear").set_f32("llama.rope.scaling.factor", 4.0F);
  EXPECT_EQ(frequencies(linear)[3], plain[3] / 4.0);
  auto factors = TinyModel{}.builder();
  Bytes eights;
  for (int i = 0; i < 16; ++i) eights.insert(eights.end(), {0, 0, 0, 0x41});
  factors.tensor("rope_freqs.weight", {16}, 0, eights);
  EXPECT_EQ(frequencies(factors)[3], plain[3] / 8.0);
  auto yarn = TinyModel{}.builder();
  yarn.set_string("llama.rope.scaling.type", "yarn");
  EXPECT_NAMES(model_error(yarn.build()), "rope scaling of type yarn");
  auto zero = TinyModel{}.builder();
  zero.tensor("rope_freqs.weight", {16}, 0, Bytes(64));
  EXPECT_NAMES(model_error(zero.build()), "rope frequencies");
}

TEST(GgufModel, WhatIsNotSupportedIsNamed) {
  const auto error_with = [](auto change) {
    auto builder = TinyModel{}.builder();
    change(builder);
    return model_error(builder.build());
  };
  EXPECT_EQ(error_with([](GgufBuilder&) {}), "");
  EXPECT_NAMES(error_with([](auto& b) { b.set_string("general.architecture", "qwen2"); }),
               "architecture is qwen2");
  EXPECT_NAMES(error_with([](auto& b) { b.remove("llama.block_count"); }), "llama.block_count is missing");
  EXPECT_NAMES(error_with([](auto& b) { b.set_u32("llama.expert_count", 8); }), "a mixture of experts");
  EXPECT_NAMES(error_with([](auto& b) { b.set_u32("llama.rope.dimension_count", 16); }), "16 of 32 channels");
  EXPECT_NAMES(error_with([](auto& b) { b.set_u32("llama.attention.key_length", 48); }), "no multiple of 32");
  EXPECT_NAMES(error_with([](auto& b) { b.set_u32("llama.attention.value_length", 64); }),
               "values have 64 channels");
  EXPECT_NAMES(error_with([](auto& b) { b.set_u32("llama.embedding_length", 66); }), "no multiple of 32");
  EXPECT_NAMES(error_with([](auto& b) {
                 b.set_u32("llama.embedding_length", 32).set_u32("llama.attention.head_count", 64);
               }),
               "head size is 0, not within 32 to 256");
  EXPECT_NAMES(error_with([](auto& b) {
                 b.set_u32("llama.embedding_length", 1024).set_u32("llama.attention.head_count", 1);
               }),
               "head size is 1024, not within 32 to 256");
  EXPECT_NAMES(error_with([](auto& b) {
                 b.set_i32s("llama.attention.head_count", {2, 2});
               }),
               "an array of int32");
  EXPECT_NAMES(error_with([](auto& b) { b.remove("llama.attention.layer_norm_rms_epsilon"); }),
               "epsilon is missing");
  EXPECT_NAMES(error_with([](auto& b) { b.remove_tensor("blk.1.ffn_up.weight"); }),
               "blk.1.ffn_up.weight is missing");
  EXPECT_NAMES(error_with([](auto& b) { b.tensor("blk.0.attn_q.bias", {64}, 0, Bytes(256)); }),
               "blk.0.attn_q.bias");
  EXPECT_NAMES(error_with([](auto& b) { b.tensor("blk.0.ffn_norm.weight", {32}, 0, Bytes(128)); }),
               "blk.0.ffn_norm.weight is [1][32]");
  EXPECT_NAMES(error_with([](auto& b) { b.set_string("tokenizer.ggml.model", "bert"); }),
               "tokenizer model bert");
  EXPECT_NAMES(error_with([](auto& b) { b.set_u32("tokenizer.ggml.eos_token_id", 99); }),
               "eos_token_id is 99");
}

}  // namespace
}  // namespace fieldprint::weights
