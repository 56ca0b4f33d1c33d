#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "anchor/registry.h"

/// How anchors and policies are shown.
namespace fieldprint::cli {

/// Its state; "expired" or "not yet valid" of a promoted one by the clock.
std::string standing(const anchor::Registry& registry, const anchor::Entry& entry, std::int64_t now);

/// One line: id, state, type, and what there is of name, tenants and validity.
std::string summary_of(const anchor::Registry& registry, const anchor::Entry& entry, std::int64_t now);

/// Everything, with the records that brought it there and the text.
nlohmann::json to_json(const anchor::Registry& registry, const anchor::Entry& entry, std::int64_t now);
std::string description_of(const anchor::Registry& registry, const anchor::Entry& entry, std::int64_t now);

nlohmann::json to_json(const anchor::Policy& policy);
std::string description_of(const anchor::Policy& policy);

}  // namespace fieldprint::cli
