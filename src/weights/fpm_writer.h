#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "base/sha256.h"
#include "weights/fpm_format.h"

namespace fieldprint::weights {

/// Writes a .fpm file beside its destination and renames it there when it is whole. Without commit() nothing
/// is left behind. What check_replaceable() refuses at the destination is the caller's error, and a symbolic
/// link there is replaced as it says. Errors of the operating system (a full disk, a directory that cannot be
/// written) are the environment's.
class FpmWriter {
 public:
  /// `sections` is the exact number of sections to come.
  static Result<std::unique_ptr<FpmWriter>> create(const std::string& destination, std::uint32_t sections);
  ~FpmWriter();
  FpmWriter(const FpmWriter&) = delete;
  FpmWriter& operator=(const FpmWriter&) = delete;

  /// Begins the next section; offset, bytes and digest are filled in as it is written.
  Status begin(const FpmSection& section);
  Status append(std::span<const std::uint8_t> bytes);
  void end();
  Status add(const FpmSection& section, std::span<const std::uint8_t> bytes);

  const std::vector<FpmSection>& sections() const { return table_; }

  /// Replaces the bytes of a written section, by as many; the last section may change its length.
  Status replace(std::size_t index, std::span<const std::uint8_t> bytes);
  void set_activation(std::size_t index, std::uint8_t activation);

  /// Writes header and table: after this the temporary file is a whole .fpm file.
  Status seal();
  /// Where the file is until commit().
  const std::string& temporary_path() const { return temporary_; }
  /// Seals, makes it durable, and puts it in place of what stood at the destination.
  Status commit();

 private:
  FpmWriter(std::string destination, std::string temporary, int fd, std::uint32_t sections);
  Status write_at(std::uint64_t offset, std::span<const std::uint8_t> bytes);
  Error failure(std::string_view action) const;

  std::string destination_;
  std::string temporary_;
  Descriptor fd_;
  std::uint32_t expected_;
  std::vector<FpmSection> table_;
  std::uint64_t end_;
  Sha256 hash_;
  bool open_section_ = false;
  bool committed_ = false;
};

}  // namespace fieldprint::weights
