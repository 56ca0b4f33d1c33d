#include "base/utc_time.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"

namespace fieldprint {
namespace {

using std::chrono::days;
using std::chrono::sys_days;
using std::chrono::year_month_day;

constexpr std::int64_t kDaySeconds = 86400;
constexpr std::string_view kForm = "dddd-dd-ddTdd:dd:ddZ";

unsigned digits(std::string_view text) {
  unsigned value = 0;
  for (const char c : text) value = value * 10 + static_cast<unsigned>(c - '0');
  return value;
}

}  // namespace

std::string format_utc(std::int64_t seconds) {
  CHECK(seconds >= 0 && seconds <= kLastUtcSecond, "no such time: {}", seconds);
  const year_month_day date(sys_days(days(seconds / kDaySeconds)));
  const std::int64_t second = seconds % kDaySeconds;
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", static_cast<int>(date.year()),
                     static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()), second / 3600,
                     second / 60 % 60, second % 60);
}

std::optional<std::int64_t> parse_utc(std::string_view text) {
  const bool formed =
      std::equal(text.begin(), text.end(), kForm.begin(), kForm.end(),
                 [](char c, char wanted) { return wanted == 'd' ? c >= '0' && c <= '9' : c == wanted; });
  if (!formed) return std::nullopt;
  const year_month_day date(std::chrono::year(static_cast<int>(digits(text.substr(0, 4)))),
                            std::chrono::month(digits(text.substr(5, 2))),
                            std::chrono::day(digits(text.substr(8, 2))));
  const unsigned hour = digits(text.substr(11, 2));
  const unsigned minute = digits(text.substr(14, 2));
  const unsigned second = digits(text.substr(17, 2));
  const bool exists =
      date.ok() && static_cast<int>(date.year()) >= 1970 && hour < 24 && minute < 60 && second < 60;
  if (!exists) return std::nullopt;
  return sys_days(date).time_since_epoch().count() * kDaySeconds + hour * 3600 + minute * 60 + second;
}

std::int64_t utc_now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(since).count();
}

}  // namespace fieldprint
