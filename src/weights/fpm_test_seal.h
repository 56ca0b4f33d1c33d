#pragma once

#include <cstring>
#include <vector>

#include "weights/fpm_format.h"

namespace fieldprint::weights::testing {

/// Makes every digest of a .fpm file in memory match its bytes again, as far as header and table can be
/// found.
inline void reseal(std::vector<std::uint8_t>& file) {
  FpmHeader header;
  if (file.size() < sizeof(header)) return;
  std::memcpy(&header, file.data(), sizeof(header));
  const std::uint64_t end = sizeof(FpmHeader) + std::uint64_t{header.section_count} * sizeof(FpmSection);
  if (end > file.size()) return;
  const std::span<const std::uint8_t> bytes(file);
  for (std::uint64_t at = sizeof(FpmHeader); at < end; at += sizeof(FpmSection)) {
    FpmSection section;
    std::memcpy(&section, file.data() + at, sizeof(section));
    if (section.offset > file.size() || section.bytes > file.size() - section.offset) continue;
    section.digest = sha256(bytes.subspan(section.offset, section.bytes));
    std::memcpy(file.data() + at, &section, sizeof(section));
  }
  header.digest = {};
  std::memcpy(file.data(), &header, sizeof(header));
  header.digest = sha256(bytes.first(end));
  std::memcpy(file.data(), &header, sizeof(header));
}

}  // namespace fieldprint::weights::testing
