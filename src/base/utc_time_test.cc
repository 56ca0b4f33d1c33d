#include "base/utc_time.h"

#include <gtest/gtest.h>

namespace fieldprint {
namespace {

TEST(UtcTime, KnownTimesAreWrittenAndReadBack) {
  const std::pair<std::int64_t, const char*> known[] = {{0, "1970-01-01T00:00:00Z"},
                                                        {951782400, "2000-02-29T00:00:00Z"},
                                                        {1764105268, "2025-11-25T21:14:28Z"},
                                                        {kLastUtcSecond, "9999-12-31T23:59:59Z"}};
  for (const auto& [seconds, text] : known) {
    EXPECT_EQ(format_utc(seconds), text);
    EXPECT_EQ(parse_utc(text), seconds);
  }
  for (std::int64_t seconds = 0; seconds <= kLastUtcSecond; seconds += 123456789) {
    ASSERT_EQ(parse_utc(format_utc(seconds)), seconds);
  }
}

TEST(UtcTime, NothingButTheOneFormIsATime) {
  for (const char* text :
       {"", "2025-11-25", "2025-11-25T21:14:28", "2025-11-25 21:14:28Z", "2025-11-25T21:14:28z",
        "2025-11-25T21:14:28+00:00", "2025-11-25T21:14:28.5Z", "2025-11-25T21:14:28Z ",
        "2025-02-29T00:00:00Z", "2025-13-01T00:00:00Z", "2025-00-01T00:00:00Z", "2025-01-00T00:00:00Z",
        "2025-01-01T24:00:00Z", "2025-01-01T00:60:00Z", "2025-01-01T00:00:60Z", "1969-12-31T23:59:59Z",
        "-025-01-01T00:00:00Z"}) {
    EXPECT_EQ(parse_utc(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace fieldprint
