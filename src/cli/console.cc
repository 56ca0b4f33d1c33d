#include "cli/console.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace fieldprint::cli {
namespace {

constexpr std::chrono::milliseconds kRedraw{200};

}  // namespace

void remark(std::string_view text) noexcept {
  std::fputs("fieldprint: ", stderr);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fputs("\n", stderr);
}

int report(const Error& error) noexcept {
  remark(error.message);
  switch (error.kind) {
    case ErrorKind::kRefuted:
      return kRefuted;
    case ErrorKind::kCaller:
      return kBadUsage;
    case ErrorKind::kEnvironment:
      return kEnvironmentFailed;
  }
  return kEnvironmentFailed;
}

void print_line(const nlohmann::json& value) {
  fmt::print("{}\n", value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

Progress::Progress(std::string what, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      shown_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      drawn_at_(start_) {}

Progress::~Progress() { clear(); }

void Progress::update(std::int64_t done, std::int64_t total) {
  const auto now = std::chrono::steady_clock::now();
  if (!shown_ || now - drawn_at_ < kRedraw) return;
  drawn_at_ = now;
  drawn_ = true;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done) / std::max(elapsed, 1e-3);
  if (total <= 0) {
    fmt::print(stderr, "\r\033[K{}: {} {}, {:.0f} {}/s", what_, done, unit_, rate, unit_);
  } else {
    const double left = static_cast<double>(total - done) / std::max(rate, 1e-9);
    fmt::print(stderr, "\r\033[K{}: {} of {} {}, {:.0f} {}/s, {:.0f} s left", what_, done, total, unit_, rate,
               unit_, left);
  }
  std::fflush(stderr);
}

void Progress::clear() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
  drawn_ = false;
}

}  // namespace fieldprint::cli
