#pragma once

#include <string>
#include <string_view>

namespace fieldprint::server {

/// The bytes as a gzip file (RFC 1952) without name and time.
std::string gzip(std::string_view bytes);

}  // namespace fieldprint::server
