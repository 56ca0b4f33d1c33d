#pragma once

#include <string_view>

namespace fieldprint {

/// True if `text` is well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates, ≤ U+10FFFF).
bool valid_utf8(std::string_view text);

}  // namespace fieldprint
