#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

/// What SQLite asks of the operating system: recorded, so that a test can say what a disk would hold if the
/// power failed between any two calls, and made to fail where it wants.
namespace fieldprint::crash {

using Bytes = std::vector<std::uint8_t>;

struct Call {
  enum Kind : std::uint8_t { kOpen, kWrite, kTruncate, kSync, kFailedSync, kDelete };
  Kind kind = kWrite;
  std::string file = {};    ///< its name without the folder
  std::int64_t offset = 0;  ///< or the new size
  Bytes bytes = {};
};

/// Becomes SQLite's default while it lives, for databases, journals and write-ahead logs; one at a time.
class RecordingVfs {
 public:
  RecordingVfs();
  ~RecordingVfs();
  RecordingVfs(const RecordingVfs&) = delete;
  RecordingVfs& operator=(const RecordingVfs&) = delete;

  std::size_t count() const;
  std::vector<Call> calls() const;
  /// The write, truncation or flush with this number, counted from 0 among these, fails: a write half done as
  /// on a full disk, a truncation without a trace.
  void fail_at(std::size_t number);
  /// How many calls were recorded before the one that failed.
  std::optional<std::size_t> failed_after() const;

  /// What the methods of the file system do.
  int record(Call call, const std::function<int(bool fail)>& perform);

 private:
  mutable std::mutex mutex_;
  std::vector<Call> calls_;
  std::size_t fail_at_ = SIZE_MAX;
  std::size_t could_fail_ = 0;
  std::optional<std::size_t> failed_after_;
};

enum class Loss : std::uint8_t {
  kAll,   ///< nothing that was not flushed reached the disk
  kNone,  ///< everything did
  kSome,  ///< each write or not, by chance
  kTorn,  ///< the same, and writes reached it in part, up to a byte by chance
};

/// The files that a disk holds when the power fails after the first `count` calls. What was flushed is there.
/// Of what a flush that failed was asked to write, each part is kept or lost for good: no later flush writes
/// it, as with Linux's page cache, which then takes it for clean.
std::map<std::string, Bytes> after_power_cut(const std::vector<Call>& calls, std::size_t count, Loss loss,
                                             std::mt19937_64& random);

}  // namespace fieldprint::crash
