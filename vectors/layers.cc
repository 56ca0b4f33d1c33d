#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <span>
#include <vector>

#include "vectors/device.h"
#include "vectors/golden.h"
#include "vectors/source.h"

/// Embedding, norms, quantisers and linear layers.
namespace fieldprint::vectors {
namespace {

using backend::ActivationFormat;
using backend::Backend;
using backend::LinearFormat;
using backend::PackedWeight;

struct FormatName {
  ActivationFormat format;
  const char* name;
};
constexpr FormatName kFormats[] = {
    {ActivationFormat::kA8, "a8"}, {ActivationFormat::kA16, "a16"}, {ActivationFormat::kA8G32, "a8g32"}};

void add_rows(Recorder& out, const std::string& name, const DeviceRows& rows) {
  out.add(name + "/q", rows.q.host());
  out.add(name + "/scale", rows.scale.host());
  if (rows.blocked()) {
    out.add(name + "/block_sum", rows.block_sum.host());
  } else {
    out.add(name + "/row_sum", rows.row_sum.host());
  }
  out.add(name + "/non_finite", rows.non_finite.host());
}

void record_quantisers(Backend& backend, Recorder& out) {
  constexpr std::int64_t kTokens = 16;
  constexpr std::int64_t kCols = 160;
  for (const auto& [format, name] : kFormats) {
    Source source(10);
    const Device<float> x(backend, rows_of_kinds(kTokens, kCols, kRowKinds, source));
    const Device<float> weight(backend, floats(kCols, 2.0F, source));
    const Device<float> gate_up(backend, rows_of_kinds(kTokens, 2 * kCols, kRowKinds, source));
    const Device<float> wide(backend, floats(kTokens * 2 * kCols, 20.0F, source));
    const std::vector<std::int32_t> picked = {9, 0, 5, 5};
    const Device<std::int32_t> rows(backend, picked);
    const char* shape = "seed 10, 16 rows of 160, row r of kind r % 8";

    out.inputs(shape);
    DeviceRows quantised(backend, format, kTokens, kCols);
    backend.quantize({x.data(), quantised.view()}, kTokens);
    add_rows(out, fmt::format("quantize/{}", name), quantised);

    DeviceRows normed(backend, format, kTokens, kCols);
    backend.norm_quantize({x.data(), nullptr, weight.data(), 1e-6F, normed.view()}, kTokens);
    add_rows(out, fmt::format("norm_quantize/{}", name), normed);

    DeviceRows gathered(backend, format, 4, kCols);
    backend.norm_quantize({x.data(), rows.data(), weight.data(), 1e-5F, gathered.view()}, 4);
    out.inputs(std::string(shape) + ", rows 9 0 5 5 of them, epsilon 1e-5");
    add_rows(out, fmt::format("norm_quantize/{}.rows", name), gathered);

    for (const auto function : {backend::GateFunction::kSilu, backend::GateFunction::kGelu}) {
      const char* gate = function == backend::GateFunction::kSilu ? "silu" : "gelu";
      out.inputs("seed 10, 16 rows of gate and up, 160 each, of all kinds");
      DeviceRows gated(backend, format, kTokens, kCols);
      backend.gated_quantize({gate_up.data(), function, gated.view()}, kTokens);
      add_rows(out, fmt::format("gated_quantize/{}.{}", name, gate), gated);
      out.inputs("seed 10, 16 rows of gate and up, 160 each, in (-20, 20)");
      DeviceRows ordinary(backend, format, kTokens, kCols);
      backend.gated_quantize({wide.data(), function, ordinary.view()}, kTokens);
      add_rows(out, fmt::format("gated_quantize/{}.{}.ordinary", name, gate), ordinary);
    }
  }
}

void record_norm_add(Backend& backend, Recorder& out) {
  constexpr std::int64_t kTokens = 12;
  constexpr std::int64_t kCols = 224;
  Source source(11);
  const Device<float> x(backend, rows_of_kinds(kTokens, kCols, kFiniteRowKinds, source));
  const Device<float> weight(backend, floats(kCols, 2.0F, source));
  const Device<float> residual(backend, floats(kTokens * kCols, 5.0F, source));
  backend.norm_add({x.data(), weight.data(), 1e-6F, kCols, residual.data()}, kTokens);
  out.inputs("seed 11, 12 rows of 224, row r of kind r % 6, epsilon 1e-6");
  out.add("norm_add", residual.host());
}

/// Bytes as aligned as a model file's tensors are.
class AlignedBytes {
 public:
  explicit AlignedBytes(std::span<const std::uint8_t> bytes) : lines_((bytes.size() + 63) / 64) {
    std::memcpy(lines_.data(), bytes.data(), bytes.size());
  }
  const std::uint8_t* data() const { return lines_.front().bytes; }

 private:
  struct alignas(64) Line {
    std::uint8_t bytes[64];
  };
  std::vector<Line> lines_;
};

/// Any bytes as weights; finite coefficients in ±2^-7.
class Weights {
 public:
  Weights(Backend& backend, ActivationFormat activation, std::int64_t rows, std::int64_t cols, Source& source)
      : blocked_(activation == ActivationFormat::kA8G32),
        tiles_((rows + exact::kTileRows - 1) / exact::kTileRows),
        data_(packed(cols, source)),
        row_scale_(floats(blocked_ ? 0 : tiles_ * exact::kTileRows, 0.01F, source)),
        view_(backend.adopt({blocked_ ? LinearFormat::kW4G32 : LinearFormat::kW8R, activation,
                             static_cast<std::int32_t>(rows), static_cast<std::int32_t>(cols), data_.data(),
                             row_scale_.data()})) {}

  const PackedWeight& view() const { return view_; }

 private:
  std::vector<std::uint8_t> packed(std::int64_t cols, Source& source) const {
    if (!blocked_) return bytes(static_cast<std::size_t>(tiles_ * exact::kTileRows * cols), source);
    const std::int64_t blocks = tiles_ * cols / exact::kBlockCols;
    std::vector<std::uint8_t> data =
        bytes(static_cast<std::size_t>(blocks * exact::kW4TileBlockBytes), source);
    for (std::int64_t b = 0; b < blocks; ++b) {
      std::uint8_t* coefficients = data.data() + b * exact::kW4TileBlockBytes + 256;
      for (int i = 0; i < 2 * exact::kTileRows; ++i) {
        // The high byte of a half holds its sign and exponent.
        std::uint8_t& high = coefficients[2 * i + 1];
        high = static_cast<std::uint8_t>((high & 0x83U) |
                                         (static_cast<std::uint64_t>(source.between(0, 7)) << 2));
      }
    }
    return data;
  }

  bool blocked_;
  std::int64_t tiles_;
  AlignedBytes data_;
  std::vector<float> row_scale_;
  PackedWeight view_;
};

void record_linear(Backend& backend, Recorder& out) {
  struct Shape {
    std::int64_t rows, cols, tokens;
    bool accumulate;
  };
  constexpr Shape kShapes[] = {
      {53, 96, 5, false}, {16, 32, 1, true}, {100, 576, 19, true}, {33, 8192, 3, false}};
  for (const auto& [format, name] : kFormats) {
    for (const Shape& s : kShapes) {
      Source source(12);
      const Weights w(backend, format, s.rows, s.cols, source);
      const Device<float> x(backend, rows_of_kinds(s.tokens, s.cols, 3, source));
      DeviceRows quantised(backend, format, s.tokens, s.cols);
      backend.quantize({x.data(), quantised.view()}, static_cast<std::int32_t>(s.tokens));
      const std::int64_t stride = s.rows + 3;
      const Device<float> y(backend, floats(s.tokens * stride, 1.0F, source));
      backend.linear(
          {w.view(), quantised.view(), static_cast<std::int32_t>(s.tokens), y.data(), stride, s.accumulate});
      out.inputs(fmt::format("seed 12, rows {}, cols {}, tokens {}, y_stride {}, accumulate {}", s.rows,
                             s.cols, s.tokens, stride, s.accumulate));
      out.add(fmt::format("linear/{}.{}x{}", name, s.rows, s.cols), y.host());
    }
  }
}

/// The widest row with every digit at its bound.
void record_extreme_linear(Backend& backend, Recorder& out) {
  constexpr std::int64_t kCols = 65536;
  constexpr std::int64_t kRows = 16;
  for (const auto format : {ActivationFormat::kA8, ActivationFormat::kA16}) {
    const AlignedBytes data(std::vector<std::uint8_t>(kRows * kCols, 0x80));
    const std::vector<float> row_scale(kRows, 0.5F);
    const PackedWeight w =
        backend.adopt({LinearFormat::kW8R, format, kRows, kCols, data.data(), row_scale.data()});
    const Device<float> x(backend, std::vector<float>(kCols, -3.0F));
    DeviceRows quantised(backend, format, 1, kCols);
    backend.quantize({x.data(), quantised.view()}, 1);
    const Device<float> y(backend, std::size_t{kRows});
    backend.linear({w, quantised.view(), 1, y.data(), kRows, false});
    out.inputs("65536 columns: every weight -128, every activation -3");
    out.add(format == ActivationFormat::kA8 ? "linear/a8.widest" : "linear/a16.widest", y.host());
  }
}

void record_embed(Backend& backend, Recorder& out) {
  for (const auto format : {ActivationFormat::kA8, ActivationFormat::kA8G32}) {
    Source source(13);
    const Weights table(backend, format, 70, 96, source);
    const std::vector<std::int32_t> tokens = {0, 69, 15, 16, 33, 0};
    const Device<std::int32_t> ids(backend, tokens);
    const Device<float> y(backend, tokens.size() * 96);
    backend.embed({table.view(), ids.data(), 25.298221F, y.data()}, static_cast<std::int32_t>(tokens.size()));
    out.inputs("seed 13, rows 70, cols 96, tokens 0 69 15 16 33 0, scale 25.298221");
    out.add(format == ActivationFormat::kA8 ? "embed/w8r" : "embed/w4g32", y.host());
  }
}

}  // namespace

void record_layers(Backend& backend, Recorder& out) {
  record_quantisers(backend, out);
  record_norm_add(backend, out);
  record_linear(backend, out);
  record_extreme_linear(backend, out);
  record_embed(backend, out);
}

}  // namespace fieldprint::vectors
