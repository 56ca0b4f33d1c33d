#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/sha256.h"

namespace fieldprint::vectors {

/// One output of one computation on fixed inputs.
struct Vector {
  std::string name;    ///< operation/case/output
  std::string inputs;  ///< what went in; the program in this folder says the rest
  std::string type;    ///< f32, f64, i8, u8, i32, u16 or u64
  std::uint64_t count;
  Digest sha256;                   ///< of the values, little endian; every NaN counts as 7fc00000
  std::vector<std::string> first;  ///< the leading values as hexadecimal bits
};

/// Collects the outputs of a run.
class Recorder {
 public:
  /// The inputs of what is recorded from now on.
  void inputs(std::string text) { inputs_ = std::move(text); }
  void add(std::string name, std::span<const float> values);
  void add(std::string name, std::span<const double> values);
  void add(std::string name, std::span<const std::int8_t> values);
  void add(std::string name, std::span<const std::uint8_t> values);
  void add(std::string name, std::span<const std::int32_t> values);
  void add(std::string name, std::span<const std::uint16_t> values);
  void add(std::string name, std::span<const std::uint64_t> values);

  const std::vector<Vector>& vectors() const { return vectors_; }

 private:
  template <class T>
  void add_bits(std::string name, std::string_view type, std::span<const T> bits);

  std::string inputs_;
  std::vector<Vector> vectors_;
};

// One function a file: each records what its operations give on `backend`.
void record_arithmetic(Recorder& out);
void record_layers(backend::Backend& backend, Recorder& out);
void record_rope(backend::Backend& backend, Recorder& out);
void record_attention(backend::Backend& backend, Recorder& out);
void record_sampling(backend::Backend& backend, Recorder& out);
void record_pages(backend::Backend& backend, Recorder& out);

/// All of them, in the order of the file.
std::vector<Vector> compute(backend::Backend& backend);

/// The committed file: JSON, one vector a line.
std::string to_json(const std::vector<Vector>& vectors);

}  // namespace fieldprint::vectors
