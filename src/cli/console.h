#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fieldprint::cli {

/// Exit codes, documented in the README.
inline constexpr int kDone = 0;
inline constexpr int kRefuted = 1;
inline constexpr int kBadUsage = 2;
inline constexpr int kEnvironmentFailed = 3;

/// Prints the error to stderr and returns its exit code. Throws nothing, even where stderr cannot be written.
int report(const Error& error) noexcept;
/// Tells on stderr what is no error. Throws nothing.
void remark(std::string_view text) noexcept;

/// Prints a value as one line on stdout. Text that is no UTF-8, as a path may be, is shown with replacement
/// characters.
void print_line(const nlohmann::json& value);

/// A progress line on stderr, redrawn a few times a second while stderr is a terminal; nothing in a pipe.
class Progress {
 public:
  Progress(std::string what, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `total` 0: unknown.
  void update(std::int64_t done, std::int64_t total);
  /// Takes the line away, so that other output starts at the left.
  void clear();

 private:
  std::string what_;
  std::string unit_;
  bool shown_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point drawn_at_;
};

}  // namespace fieldprint::cli
