#include "base/fault_point.h"

#include <unistd.h>

#include <atomic>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

namespace fieldprint::fault {
namespace {

constexpr char kVariable[] = "FIELDPRINT_FAULT";

enum class Kind : std::uint8_t { kKill, kStop, kFail };

struct Order {
  Kind kind = Kind::kKill;
  std::size_t point = 0;
  std::uint64_t pass = 0;
};

std::optional<Order> parse(std::string_view text) {
  Order order;
  const auto first = text.find(':');
  const auto last = text.rfind(':');
  if (first == std::string_view::npos || first == last) return {};
  const std::string_view kind = text.substr(0, first);
  const std::string_view name = text.substr(first + 1, last - first - 1);
  const std::string_view number = text.substr(last + 1);
  if (kind != "kill" && kind != "stop" && kind != "fail") return {};
  order.kind = kind == "kill" ? Kind::kKill : kind == "stop" ? Kind::kStop : Kind::kFail;
  const auto [end, failure] = std::from_chars(number.data(), number.data() + number.size(), order.pass);
  if (failure != std::errc() || end != number.data() + number.size() || order.pass == 0) return {};
  for (const Point& point : kPoints) {
    if (point.name != name) continue;
    if (order.kind == Kind::kFail && !point.can_fail) return {};
    order.point = static_cast<std::size_t>(&point - kPoints);
    return order;
  }
  return {};
}

const std::optional<Order>& order() {
  static const std::optional<Order> given = []() -> std::optional<Order> {
    const char* text = ::secure_getenv(kVariable);
    if (text == nullptr) return {};
    const auto parsed = parse(text);
    if (!parsed) {
      fmt::print(stderr, "fieldprint: {}={} is no fault that can be injected; unset it\n", kVariable, text);
      ::_exit(2);
    }
    fmt::print(stderr, "fieldprint: fault injection: {}={}\n", kVariable, text);
    return parsed;
  }();
  return given;
}

}  // namespace

const bool kArmed = order().has_value();

Status pass(std::size_t point) {
  static std::atomic<std::uint64_t> passes{0};
  if (point != order()->point || passes.fetch_add(1) + 1 != order()->pass) return {};
  if (order()->kind == Kind::kKill) ::kill(::getpid(), SIGKILL);
  fmt::print(stderr, "fieldprint: fault injected\n");
  if (order()->kind == Kind::kStop) {
    ::raise(SIGSTOP);  // to this thread: sent to the process, another one may take it, and this one goes on
    return {};
  }
  return environment_error(fmt::format("injected fault at {}", kPoints[point].name));
}

}  // namespace fieldprint::fault
