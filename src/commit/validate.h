#pragma once

#include <optional>
#include <string>

#include "commit/receipt.h"

namespace fieldprint::commit {

struct FieldError {
  std::string field;
  std::string problem;
};

/// The first field whose value is out of its range, or nothing. Ranges only: whether the values are true is
/// for the checks to say.
std::optional<FieldError> find_invalid(const Body& body);
std::optional<FieldError> find_invalid(const Receipt& receipt);

/// "receipt field NAME: PROBLEM", the caller's error.
Error field_error(const FieldError& error);

}  // namespace fieldprint::commit
