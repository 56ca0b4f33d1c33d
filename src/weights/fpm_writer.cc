#include "weights/fpm_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "exact/format.h"

namespace fieldprint::weights {
namespace {

template <class T>
std::span<const std::uint8_t> bytes_of(const T& value) {
  return {reinterpret_cast<const std::uint8_t*>(&value), sizeof(T)};
}

}  // namespace

FpmWriter::FpmWriter(std::string destination, std::string temporary, int fd, std::uint32_t sections)
    : destination_(std::move(destination)),
      temporary_(std::move(temporary)),
      fd_(fd),
      expected_(sections),
      end_(sizeof(FpmHeader) + std::uint64_t{sections} * sizeof(FpmSection)) {}

FpmWriter::~FpmWriter() {
  if (!committed_) ::unlink(temporary_.c_str());
}

Result<std::unique_ptr<FpmWriter>> FpmWriter::create(const std::string& destination, std::uint32_t sections) {
  if (Status status = check_replaceable(destination); !status) return status.error();
  // Unique in its directory: a writer that was killed may have left its file behind.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::string temporary = fmt::format("{}.{}-{}.partial", destination, ::getpid(), attempt);
    const int fd = ::open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
      return std::unique_ptr<FpmWriter>(new FpmWriter(destination, std::move(temporary), fd, sections));
    }
    if (errno != EEXIST) break;
  }
  return environment_error(fmt::format("cannot create a file beside {}: {}; choose another place with -o",
                                       destination, system_reason(errno)));
}

Error FpmWriter::failure(std::string_view action) const {
  const int error = errno;
  const std::string_view advice = error == ENOSPC || error == EDQUOT || error == EFBIG
                                      ? "; free space there or choose another place with -o"
                                      : "";
  return environment_error(
      fmt::format("cannot {} {}: {}{}", action, temporary_, system_reason(error), advice));
}

Status FpmWriter::write_at(std::uint64_t offset, std::span<const std::uint8_t> bytes) {
  if (!write_all_at(fd_.get(), static_cast<off_t>(offset), bytes)) return failure("write to");
  return {};
}

Status FpmWriter::begin(const FpmSection& section) {
  CHECK(!open_section_ && table_.size() < expected_);
  const std::uint64_t offset = align_section(end_);
  constexpr std::array<std::uint8_t, kFpmAlignment> kZeros{};
  if (Status status = write_at(end_, std::span(kZeros).first(offset - end_)); !status) return status;
  table_.push_back(section);
  table_.back().offset = offset;
  table_.back().bytes = 0;
  end_ = offset;
  hash_ = Sha256();
  open_section_ = true;
  return {};
}

Status FpmWriter::append(std::span<const std::uint8_t> bytes) {
  CHECK(open_section_);
  hash_.update(bytes);
  if (Status status = write_at(end_, bytes); !status) return status;
  end_ += bytes.size();
  table_.back().bytes += bytes.size();
  return {};
}

void FpmWriter::end() {
  CHECK(open_section_);
  table_.back().digest = hash_.finish();
  open_section_ = false;
}

Status FpmWriter::add(const FpmSection& section, std::span<const std::uint8_t> bytes) {
  if (Status status = begin(section); !status) return status;
  if (Status status = append(bytes); !status) return status;
  end();
  return {};
}

Status FpmWriter::replace(std::size_t index, std::span<const std::uint8_t> bytes) {
  CHECK(!open_section_ && index < table_.size());
  FpmSection& section = table_[index];
  if (section.bytes != bytes.size()) {
    CHECK(index + 1 == table_.size(), "only the last section may change its length");
    section.bytes = bytes.size();
    end_ = section.offset + section.bytes;
    if (::ftruncate(fd_.get(), static_cast<off_t>(end_)) != 0) return failure("resize");
  }
  section.digest = sha256(bytes);
  return write_at(section.offset, bytes);
}

void FpmWriter::set_activation(std::size_t index, std::uint8_t activation) {
  CHECK(index < table_.size() && is_matrix(table_[index].kind));
  table_[index].activation = activation;
}

Status FpmWriter::seal() {
  CHECK(!open_section_ && table_.size() == expected_);
  FpmHeader header{};
  header.magic = kFpmMagic;
  header.version = kFpmVersion;
  header.section_count = expected_;
  header.file_bytes = end_;
  std::copy_n(exact::kCanonVersion, sizeof(exact::kCanonVersion), header.canon.begin());
  const std::span<const std::uint8_t> table(reinterpret_cast<const std::uint8_t*>(table_.data()),
                                            table_.size() * sizeof(FpmSection));
  header.digest = Sha256().update(bytes_of(header)).update(table).finish();
  if (Status status = write_at(sizeof(FpmHeader), table); !status) return status;
  return write_at(0, bytes_of(header));
}

Status FpmWriter::commit() {
  if (Status status = seal(); !status) return status;
  if (::fsync(fd_.get()) != 0) return failure("flush");
  if (fd_.close() != 0) return failure("close");
  // Again, because much time may have passed.
  if (Status status = check_replaceable(destination_); !status) return status;
  if (::rename(temporary_.c_str(), destination_.c_str()) != 0) {
    return environment_error(
        fmt::format("cannot rename {} to {}: {}", temporary_, destination_, system_reason(errno)));
  }
  committed_ = true;
  return sync_folder_of(destination_);
}

}  // namespace fieldprint::weights
