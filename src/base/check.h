#pragma once

#include <fmt/format.h>

#include <string_view>

namespace fieldprint::detail {

/// Prints the broken invariant to stderr and aborts: a process in an unknown state must not append to a
/// ledger.
[[noreturn]] void check_failed(const char* file, int line, const char* condition, std::string_view message);

}  // namespace fieldprint::detail

/// Stops the process when an invariant of ours is broken. Never for input or the operating system.
#define CHECK(condition, ...)                                                                            \
  do {                                                                                                   \
    if (!(condition)) [[unlikely]] {                                                                     \
      ::fieldprint::detail::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
    }                                                                                                    \
  } while (false)
