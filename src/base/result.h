#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace fieldprint {

/// Whose fault it was. The command line maps it to its exit code.
enum class ErrorKind {
  kCaller,       ///< bad usage or unreadable input: exit 2; the message says what to do
  kRefuted,      ///< the answer is no (does not verify, a difference was found): exit 1
  kEnvironment,  ///< the operating system, disk, device or database failed: exit 3
};

struct Error {
  ErrorKind kind;
  std::string message;
};

inline Error caller_error(std::string message) { return {ErrorKind::kCaller, std::move(message)}; }
inline Error refuted(std::string message) { return {ErrorKind::kRefuted, std::move(message)}; }
inline Error environment_error(std::string message) { return {ErrorKind::kEnvironment, std::move(message)}; }

/// A value or the error that kept it from being made. A broken invariant is no error: it is a CHECK.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return std::holds_alternative<T>(state_); }
  explicit operator bool() const { return ok(); }

  T& value() & {
    CHECK(ok(), "Result::value() on an error: {}", error().message);
    return std::get<T>(state_);
  }
  const T& value() const& {
    CHECK(ok(), "Result::value() on an error: {}", error().message);
    return std::get<T>(state_);
  }
  T&& value() && {
    CHECK(ok(), "Result::value() on an error: {}", error().message);
    return std::get<T>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const { return std::get<Error>(state_); }

 private:
  std::variant<T, Error> state_;
};

/// Success or an error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

}  // namespace fieldprint
