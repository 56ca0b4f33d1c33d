#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/device.h"

struct CUevent_st;

/// Copies between pageable host memory and the device by way of page-locked memory, in stream order.
namespace fieldprint::backend::cuda {

/// Memory on the device, at least 256-byte aligned. Throws std::bad_alloc if there is no room.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::int64_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::uint8_t* data() const { return data_; }
  /// Gives the memory away, to be freed with cudaFree.
  std::uint8_t* release();

 private:
  std::uint8_t* data_ = nullptr;
};

/// Device memory that grows, losing what it held, and waits for the device when it does.
class GrowingMemory {
 public:
  void reserve(std::int64_t bytes);
  std::uint8_t* data() const { return memory_.data(); }

 private:
  DeviceMemory memory_;
  std::int64_t bytes_ = 0;
};

/// Page-locked host memory, which the device can reach too. It grows, losing what it held.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::int64_t bytes = 0) { reserve(bytes); }
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  void reserve(std::int64_t bytes);
  std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// A point in a stream that the host or another stream can wait for.
class Event {
 public:
  /// With `timed` such points can be told apart in time; that costs a little.
  explicit Event(bool timed = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream);
  bool passed() const;             ///< wait() would return at once
  void wait() const;               ///< the host waits; returns at once if nothing was recorded
  void hold(Stream stream) const;  ///< what is enqueued on `stream` from now on waits
  /// The device's time from `start` to this; both are timed and passed.
  std::chrono::nanoseconds since(const Event& start) const;

 private:
  CUevent_st* event_ = nullptr;
};

class Transfer {
 public:
  explicit Transfer(Stream stream) : stream_(stream) {}

  /// The host's memory may change on return; the device's does when the stream comes to it.
  void upload(void* device, const void* host, std::int64_t bytes);
  /// Complete on return, and with it all that was enqueued before.
  void download(void* host, const void* device, std::int64_t bytes);

 private:
  static constexpr std::int64_t kSegmentBytes = 4 << 20;
  static constexpr std::size_t kSegments = 4;
  struct Segment {
    PinnedMemory memory{kSegmentBytes};
    Event free;  ///< when the device has read what was last written to it
  };

  void next_segment();

  Stream stream_;
  std::array<Segment, kSegments> up_;
  std::size_t segment_ = 0;
  std::int64_t used_ = 0;  ///< of the current segment
  std::array<Segment, 2> down_;
};

}  // namespace fieldprint::backend::cuda
