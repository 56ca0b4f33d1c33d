#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace fieldprint::detail {

void check_failed(const char* file, int line, const char* condition, std::string_view message) {
  fmt::print(stderr, "fieldprint: broken invariant at {}:{}: {} {}\n", file, line, condition, message);
  std::abort();
}

}  // namespace fieldprint::detail
