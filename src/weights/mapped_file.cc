#include "weights/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/file.h"

namespace fieldprint::weights {
namespace {

bool is_callers(int error) {
  return error == ENOENT || error == EACCES || error == EPERM || error == ENOTDIR || error == ELOOP ||
         error == ENAMETOOLONG || error == EISDIR;
}

}  // namespace

MappedFile::MappedFile(std::string path, std::span<const std::uint8_t> bytes)
    : path_(std::move(path)), bytes_(bytes) {}

MappedFile::~MappedFile() { ::munmap(const_cast<std::uint8_t*>(bytes_.data()), bytes_.size()); }

void MappedFile::forget(std::span<const std::uint8_t> bytes) const {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = static_cast<std::size_t>(bytes.data() - bytes_.data()) / page * page;
  const std::size_t end = static_cast<std::size_t>(bytes.data() - bytes_.data()) + bytes.size();
  // Advice only: where it is refused, the pages stay.
  ::madvise(const_cast<std::uint8_t*>(bytes_.data()) + begin, end - begin, MADV_DONTNEED);
}

Result<std::unique_ptr<MappedFile>> MappedFile::open(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) {
    const int error = errno;
    const std::string message = fmt::format("cannot open {}: {}", path, system_reason(error));
    return is_callers(error) ? caller_error(message) : environment_error(message);
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) {
    return environment_error(fmt::format("cannot stat {}: {}", path, system_reason(errno)));
  }
  if (!S_ISREG(status.st_mode)) {
    return caller_error(fmt::format("{} is not a regular file; give the path of a model file", path));
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return caller_error(fmt::format("{} is empty; fetch it again", path));
  void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) {
    return environment_error(
        fmt::format("cannot map the {} bytes of {}: {}", size, path, system_reason(errno)));
  }
  const auto* const data = static_cast<const std::uint8_t*>(address);
  return std::unique_ptr<MappedFile>(new MappedFile(path, {data, size}));
}

}  // namespace fieldprint::weights
