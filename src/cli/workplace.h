#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "store/data_folder.h"

namespace fieldprint::cli {

/// For the records of measurements.
std::string cpu_model();
std::string today();

/// A folder that goes away at the end, unless the caller named one.
class Workplace {
 public:
  static Result<std::unique_ptr<Workplace>> make(const store::DataFolder& wanted);
  ~Workplace();
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;
  const store::DataFolder& place() const { return place_; }

 private:
  Workplace() = default;
  store::DataFolder place_;
  std::string temporary_;
};

}  // namespace fieldprint::cli
