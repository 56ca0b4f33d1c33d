#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "base/temporary_folder.h"
#include "store/data_folder.h"

namespace fieldprint::cli {

/// For the records of measurements.
std::string cpu_model();
std::string today();

/// A folder that goes away at the end, unless the caller named one.
class Workplace {
 public:
  static Result<Workplace> make(const store::DataFolder& wanted);
  const store::DataFolder& place() const { return place_; }

 private:
  Workplace() = default;
  store::DataFolder place_;
  std::optional<TemporaryFolder> temporary_;
};

}  // namespace fieldprint::cli
