#include "weights/random_model.h"

#include <gtest/gtest.h>

#include <cstring>

namespace fieldprint::weights {
namespace {

ModelSpec small_shape() {
  ModelSpec spec;
  spec.layers = 3;
  spec.dim = 96;
  spec.hidden = 160;
  spec.heads = 6;
  spec.kv_heads = 2;
  spec.head_dim = 32;
  spec.vocab = 50;
  spec.context = 300;
  return spec;
}

TEST(RandomModel, HasTheShapeThatWasAskedFor) {
  const auto model = random_model(small_shape(), backend::ActivationFormat::kA16, 1);
  ASSERT_TRUE(model.ok()) << model.error().message;
  ASSERT_EQ((*model)->layers().size(), 3U);
  const LayerWeights& layer = (*model)->layers().back();
  EXPECT_EQ(layer.qkv.at(0).rows, 6 * 32 + 2 * 2 * 32);
  EXPECT_EQ(layer.gate_up.at(0).rows, 320);
  EXPECT_EQ(layer.down.cols, 160);
  EXPECT_EQ(layer.down.activation, backend::ActivationFormat::kA16);
  EXPECT_EQ((*model)->output().rows, 50);
  EXPECT_NE((*model)->output().data, (*model)->embedding().data);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(layer.down.data) % 64, 0U);
}

TEST(RandomModel, IsMadeByItsSeed) {
  const auto a = random_model(small_shape(), backend::ActivationFormat::kA8, 1);
  const auto b = random_model(small_shape(), backend::ActivationFormat::kA8, 1);
  const auto c = random_model(small_shape(), backend::ActivationFormat::kA8, 2);
  const auto bytes = [](const auto& model) { return (*model)->layers()[1].down.data; };
  EXPECT_EQ(std::memcmp(bytes(a), bytes(b), 96 * 160), 0);
  EXPECT_NE(std::memcmp(bytes(a), bytes(c), 96 * 160), 0);
}

TEST(RandomModel, ShapesThatNoKernelTakesAreRefused) {
  ModelSpec shape = small_shape();
  shape.hidden = 100;
  EXPECT_FALSE(random_model(shape, backend::ActivationFormat::kA8, 1).ok());
  shape = small_shape();
  shape.kv_heads = 4;
  EXPECT_FALSE(random_model(shape, backend::ActivationFormat::kA8, 1).ok());
}

}  // namespace
}  // namespace fieldprint::weights
