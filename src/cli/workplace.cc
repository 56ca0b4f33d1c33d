#include "cli/workplace.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

namespace fieldprint::cli {

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm date{};
  ::gmtime_r(&now, &date);
  return fmt::format("{:04}-{:02}-{:02}", date.tm_year + 1900, date.tm_mon + 1, date.tm_mday);
}

Result<Workplace> Workplace::make(const store::DataFolder& wanted) {
  Workplace work;
  work.place_ = wanted;
  if (!wanted.folder.empty()) {
    std::error_code failure;
    std::filesystem::create_directories(wanted.folder, failure);
    if (failure)
      return environment_error(
          fmt::format("cannot create the folder {}: {}", wanted.folder, failure.message()));
    return work;
  }
  auto temporary = TemporaryFolder::make();
  if (!temporary) {
    return environment_error(temporary.error().message + ", or give --data");
  }
  work.temporary_ = std::move(*temporary);
  work.place_.folder = work.temporary_->path();
  return work;
}

}  // namespace fieldprint::cli
