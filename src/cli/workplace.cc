#include "cli/workplace.h"

#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <system_error>

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

Result<std::unique_ptr<Workplace>> Workplace::make(const store::DataFolder& wanted) {
  std::unique_ptr<Workplace> place(new Workplace());
  place->place_ = wanted;
  if (!wanted.folder.empty()) {
    std::error_code failure;
    std::filesystem::create_directories(wanted.folder, failure);
    if (failure)
      return environment_error(
          fmt::format("cannot create the folder {}: {}", wanted.folder, failure.message()));
    return place;
  }
  std::string pattern = (std::filesystem::temp_directory_path() / "fieldprint-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    return environment_error(fmt::format("cannot make a folder like {}; set TMPDIR or give --data", pattern));
  }
  place->temporary_ = pattern;
  place->place_.folder = pattern;
  return place;
}

Workplace::~Workplace() {
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

}  // namespace fieldprint::cli
