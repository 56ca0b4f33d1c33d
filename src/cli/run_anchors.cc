#include "cli/run_anchors.h"

#include <filesystem>
#include <optional>
#include <utility>

#include "base/bounds.h"
#include "cli/anchor_office.h"
#include "engine/anchor_office.h"

namespace fieldprint::cli {
namespace {

bool names_an_id(const std::string& argument) {
  std::error_code failure;
  return std::cmp_greater_equal(argument.size(), bounds::kMinAnchorPrefixDigits) && argument.size() <= 64 &&
         argument.find_first_not_of("0123456789abcdef") == std::string::npos &&
         !std::filesystem::exists(argument, failure);
}

}  // namespace

Result<RunAnchors> read_anchors(const std::vector<std::string>& arguments, const store::DataFolder& place) {
  std::optional<anchor::Registry> registry;
  std::vector<anchor::Anchor> anchors;
  RunAnchors out;
  for (const std::string& argument : arguments) {
    out.from_files.push_back(!names_an_id(argument));
    if (out.from_files.back()) {
      auto anchor = anchor::Anchor::load(argument);
      if (!anchor) return anchor.error();
      anchors.push_back(std::move(*anchor));
      continue;
    }
    if (!registry) {
      auto read = read_registry(place);
      if (!read) return read.error();
      registry = std::move(*read);
    }
    auto id = registry->resolve(argument);
    if (!id) return id.error();
    anchors.push_back(registry->find(*id)->anchor);
  }
  auto set = anchor::AnchorSet::make(std::move(anchors));
  if (!set) return set.error();
  out.set = std::move(*set);
  return out;
}

Status admit_anchors(const RunAnchors& anchors, engine::Authority& authority, store::SignedLog& log,
                     const anchor::Use& use) {
  for (std::size_t i = 0; i < anchors.from_files.size(); ++i) {
    const anchor::Anchor& anchor = anchors.set.anchors()[i];
    Status status = anchors.from_files[i] ? engine::adopt(authority, log, anchor, use)
                                          : authority.admit(anchor.id(), use);
    if (!status) return status;
  }
  return {};
}

}  // namespace fieldprint::cli
