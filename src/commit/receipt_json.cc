#include <bit>
#include <nlohmann/json.hpp>

#include "commit/fields.h"
#include "commit/receipt.h"
#include "commit/validate.h"

namespace fieldprint::commit {
namespace {

using Json = nlohmann::ordered_json;

Json view(std::uint32_t value) { return value; }
Json view(std::uint64_t value) { return value; }
Json view(std::int32_t value) { return value; }
Json view(float value) {
  return {{"value", value}, {"bits", fmt::format("0x{:08x}", std::bit_cast<std::uint32_t>(value))}};
}
Json view(const std::string& value) { return value; }
Json view(const Digest& value) { return to_hex(value); }
Json view(const Bytes& value) { return to_hex(value); }
Json view(core::FinishReason value) { return value == core::FinishReason::kStop ? "stop" : "length"; }

Json view(const core::BlockRecord& block) {
  constexpr const char* kSegments[] = {"sink", "anchors", "context"};
  return {{"segment", kSegments[static_cast<std::size_t>(block.segment)]},
          {"index", block.index},
          {"tokens", block.tokens},
          {"digest", to_hex(block.digest)}};
}

template <detail::HasFields T>
Json view(const T& value);

template <class T>
Json view(const std::vector<T>& items) {
  Json array = Json::array();
  for (const T& item : items) array.push_back(view(item));
  return array;
}

template <detail::HasFields T>
Json view(const T& value) {
  Json object = Json::object();
  detail::for_each_field(value, [&](const char* name, const auto& member) { object[name] = view(member); });
  return object;
}

}  // namespace

Result<std::string> to_json(const Receipt& receipt) {
  if (const auto malformed = find_malformed(receipt)) return field_error(*malformed);
  return view(receipt).dump(2) + "\n";
}

}  // namespace fieldprint::commit
