#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/device_testing.h"
#include "backend/cuda/repack.h"
#include "backend/ops.h"

/// Device copies of test data.
namespace fieldprint::backend::cuda::testing {

/// `count` values of device memory, freed at the end.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    check(cudaMalloc(&data_, bytes() > 0 ? bytes() : 1), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.data(), host.size()) {}
  DeviceArray(const T* host, std::size_t count) : DeviceArray(count) {
    check(cudaMemcpy(data_, host, bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> download() const {
    std::vector<T> host(count_);
    check(cudaMemcpy(host.data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host;
  }

 private:
  std::size_t bytes() const { return count_ * sizeof(T); }

  std::size_t count_;
  void* data_ = nullptr;
};

/// A weight of the storage of kernel_testing.h, repacked on the device.
class DeviceWeight {
 public:
  template <typename WeightStorage>
  explicit DeviceWeight(WeightStorage& host)
      : data_(host.data(), static_cast<std::size_t>(host.bytes())),
        scale_(host.row_scale),
        packed_(static_cast<std::size_t>(repacked_bytes(host.view()))) {
    PackedWeight weight = host.view();
    weight.data = data_.get();
    weight.row_scale = scale_.get();
    view_ = repack(weight, packed_.get(), nullptr);
    check(cudaDeviceSynchronize(), "repack");
  }
  const PackedWeight& view() const { return view_; }

 private:
  DeviceArray<std::uint8_t> data_;
  DeviceArray<float> scale_;
  DeviceArray<std::uint8_t> packed_;
  PackedWeight view_{};
};

/// Quantised rows of the storage of kernel_testing.h.
class DeviceRows {
 public:
  template <typename QuantStorage>
  explicit DeviceRows(const QuantStorage& host)
      : format_(host.format),
        cols_(host.cols),
        q_(host.q),
        scale_(host.scale),
        row_sum_(host.row_sum),
        block_sum_(host.block_sum) {}
  QuantRows view() const {
    return {format_, cols_, q_.get(), scale_.get(), row_sum_.get(), block_sum_.get(), nullptr};
  }

 private:
  ActivationFormat format_;
  std::int32_t cols_;
  DeviceArray<std::int8_t> q_;
  DeviceArray<float> scale_;
  DeviceArray<std::int32_t> row_sum_;
  DeviceArray<float> block_sum_;
};

}  // namespace fieldprint::backend::cuda::testing
