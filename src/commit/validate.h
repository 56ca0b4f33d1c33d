#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "commit/receipt.h"
#include "commit/segment.h"

namespace fieldprint::commit {

struct FieldError {
  std::string field;
  std::string problem;
};

/// The first field that the format cannot hold, or nothing: too long, not finite, no UTF-8, no
/// token. A receipt that was
/// read is never malformed, but it may state settings with which nothing can be computed.
std::optional<FieldError> find_malformed(const Body& body);
std::optional<FieldError> find_malformed(const Receipt& receipt);

/// The first field that is malformed, or a setting out of its range (core/settings.h), or nothing. Ranges
/// only: whether the values are true is for the checks to say.
std::optional<FieldError> find_invalid(const Body& body);
std::optional<FieldError> find_invalid(const Receipt& receipt);
std::optional<FieldError> find_invalid(const OpenRecord& record);
std::optional<FieldError> find_invalid(const SegmentRecord& record);
std::optional<FieldError> find_invalid(const VerdictRecord& record);

/// "receipt field NAME: PROBLEM", the caller's error.
Error field_error(const FieldError& error, std::string_view what = "receipt");

}  // namespace fieldprint::commit
