#include "backend/cuda/transfer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace fieldprint::backend::cuda {

DeviceMemory::DeviceMemory(std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(std::max<std::int64_t>(bytes, 64)));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears it, so that no launch is blamed for it
    throw std::bad_alloc();
  }
  check(error, "cudaMalloc");
  data_ = static_cast<std::uint8_t*>(memory);
}

DeviceMemory::~DeviceMemory() { check(cudaFree(data_), "cudaFree"); }

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  if (this == &other) return *this;
  check(cudaFree(data_), "cudaFree");
  data_ = std::exchange(other.data_, nullptr);
  return *this;
}

std::uint8_t* DeviceMemory::release() { return std::exchange(data_, nullptr); }

void GrowingMemory::reserve(std::int64_t bytes) {
  if (bytes <= bytes_) return;
  bytes_ = 0;
  memory_ = DeviceMemory();
  memory_ = DeviceMemory(bytes + bytes / 2);
  bytes_ = bytes + bytes / 2;
}

PinnedMemory::~PinnedMemory() { check(cudaFreeHost(data_), "cudaFreeHost"); }

void PinnedMemory::reserve(std::int64_t bytes) {
  if (bytes <= bytes_) return;
  check(cudaFreeHost(std::exchange(data_, nullptr)), "cudaFreeHost");
  bytes_ = 0;
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw std::bad_alloc();
  }
  check(error, "cudaMallocHost");
  data_ = static_cast<std::uint8_t*>(memory);
  bytes_ = bytes;
}

Event::Event(bool timed) {
  check(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreate");
}
Event::~Event() { check(cudaEventDestroy(event_), "cudaEventDestroy"); }
void Event::record(Stream stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
bool Event::passed() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status != cudaErrorNotReady) check(status, "cudaEventQuery");
  return status == cudaSuccess;
}
void Event::wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
void Event::hold(Stream stream) const {
  check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}
std::chrono::nanoseconds Event::since(const Event& start) const {
  float ms = 0.0F;
  check(cudaEventElapsedTime(&ms, start.event_, event_), "cudaEventElapsedTime");
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<float, std::milli>(ms));
}

void Transfer::next_segment() {
  up_[segment_].free.record(stream_);
  segment_ = (segment_ + 1) % kSegments;
  up_[segment_].free.wait();
  used_ = 0;
}

void Transfer::upload(void* device, const void* host, std::int64_t bytes) {
  auto* to = static_cast<std::uint8_t*>(device);
  const auto* from = static_cast<const std::uint8_t*>(host);
  while (bytes > 0) {
    if (used_ == kSegmentBytes) next_segment();
    const std::int64_t part = std::min(bytes, kSegmentBytes - used_);
    const auto size = static_cast<std::size_t>(part);
    std::uint8_t* staged = up_[segment_].memory.data() + used_;
    std::memcpy(staged, from, size);
    check(cudaMemcpyAsync(to, staged, size, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
    used_ += part;
    to += part;
    from += part;
    bytes -= part;
  }
}

void Transfer::download(void* host, const void* device, std::int64_t bytes) {
  auto* to = static_cast<std::uint8_t*>(host);
  const auto* from = static_cast<const std::uint8_t*>(device);
  // One part is on its way while the one before is copied on.
  std::int64_t copied = 0;
  const auto finish = [&](std::int64_t begin, std::size_t buffer) {
    down_[buffer].free.wait();
    const auto size = static_cast<std::size_t>(std::min(bytes - begin, kSegmentBytes));
    std::memcpy(to + begin, down_[buffer].memory.data(), size);
  };
  std::size_t buffer = 0;
  for (std::int64_t begin = 0; begin < bytes; begin += kSegmentBytes, buffer ^= 1) {
    const auto size = static_cast<std::size_t>(std::min(bytes - begin, kSegmentBytes));
    check(cudaMemcpyAsync(down_[buffer].memory.data(), from + begin, size, cudaMemcpyDeviceToHost, stream_),
          "cudaMemcpyAsync");
    down_[buffer].free.record(stream_);
    if (begin == 0) continue;
    finish(copied, buffer ^ 1);
    copied = begin;
  }
  if (bytes > 0) finish(copied, buffer ^ 1);
}

}  // namespace fieldprint::backend::cuda
