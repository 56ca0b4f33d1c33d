#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "exact/format.h"

namespace fieldprint::vectors {

/// Values in a backend's memory.
template <class T>
class Device {
 public:
  Device(backend::Backend& backend, std::span<const T> host) : Device(backend, host.size()) {
    backend.upload(data_, host.data(), bytes());
  }
  Device(backend::Backend& backend, std::size_t count)
      : backend_(&backend),
        count_(count),
        data_(reinterpret_cast<T*>(backend.allocate(static_cast<std::int64_t>(count * sizeof(T))))) {
    backend.clear(data_, bytes());
  }
  ~Device() { backend_->release(reinterpret_cast<std::uint8_t*>(data_)); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> out(count_);
    backend_->synchronize();
    backend_->download(out.data(), data_, bytes());
    return out;
  }

 private:
  std::int64_t bytes() const { return static_cast<std::int64_t>(count_ * sizeof(T)); }

  backend::Backend* backend_;
  std::size_t count_;
  T* data_;
};

/// Quantised rows in a backend's memory.
struct DeviceRows {
  DeviceRows(backend::Backend& backend, backend::ActivationFormat row_format, std::int64_t tokens,
             std::int64_t row_cols)
      : format(row_format),
        cols(static_cast<std::int32_t>(row_cols)),
        q(backend, static_cast<std::size_t>(tokens * row_cols * digits())),
        scale(backend, static_cast<std::size_t>(tokens * (blocked() ? blocks() : 1))),
        row_sum(backend, static_cast<std::size_t>(blocked() ? 0 : tokens * digits())),
        block_sum(backend, static_cast<std::size_t>(blocked() ? tokens * blocks() : 0)),
        non_finite(backend, static_cast<std::size_t>(tokens)) {}

  bool blocked() const { return format == backend::ActivationFormat::kA8G32; }
  std::int64_t digits() const { return format == backend::ActivationFormat::kA16 ? 2 : 1; }
  std::int64_t blocks() const { return cols / exact::kBlockCols; }
  backend::QuantRows view() const {
    return {format, cols, q.data(), scale.data(), row_sum.data(), block_sum.data(), non_finite.data()};
  }

  backend::ActivationFormat format;
  std::int32_t cols;
  Device<std::int8_t> q;
  Device<float> scale;
  Device<std::int32_t> row_sum;
  Device<float> block_sum;
  Device<std::int32_t> non_finite;
};

}  // namespace fieldprint::vectors
