#include "anchor/terms.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "anchor/head_line.h"
#include "base/bounds.h"
#include "base/utc_time.h"

namespace fieldprint::anchor {
namespace {

template <class T>
Status put_in_order(std::vector<T>& items, std::string_view what) {
  if (std::cmp_greater(items.size(), bounds::kMaxAnchorListed)) {
    return caller_error(
        fmt::format("{} {} are over the limit of {}", items.size(), what, bounds::kMaxAnchorListed));
  }
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
  return {};
}

std::string shortest(float value) {
  char text[32];
  const auto end = std::to_chars(std::begin(text), std::end(text), value).ptr;
  return {std::begin(text), end};
}

std::optional<float> share(std::string_view text) {
  float value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Status take_digests(std::string_view& rest, std::string_view key, std::vector<Digest>& out) {
  std::string_view value;
  while (take_line(rest, key, value)) {
    Digest digest{};
    if (!from_hex(value, digest))
      return caller_error(fmt::format("'{}{}' is no SHA-256 in hexadecimal", key, value));
    out.push_back(digest);
  }
  return {};
}

Status take_share(std::string_view& rest, std::string_view key, float& out) {
  std::string_view value;
  if (!take_line(rest, key, value)) return {};
  const auto number = share(value);
  if (!number) return caller_error(fmt::format("'{}{}' is no number", key, value));
  out = *number;
  return {};
}

Status take_time(std::string_view& rest, std::string_view key, std::optional<std::int64_t>& out) {
  std::string_view value;
  if (!take_line(rest, key, value)) return {};
  out = parse_utc(value);
  if (!out) return caller_error(fmt::format("'{}{}' is no time such as 2026-11-25T21:14:28Z", key, value));
  return {};
}

bool outside(std::optional<std::int64_t> time) { return time && (*time < 0 || *time > kLastUtcSecond); }

}  // namespace

Result<Terms> checked(Terms terms) {
  for (const std::string& tenant : terms.tenants) {
    const bool good =
        !tenant.empty() && std::cmp_less_equal(tenant.size(), bounds::kMaxTenantBytes) && is_line(tenant);
    if (!good) {
      return caller_error(
          fmt::format("a tenant's name must be one line of UTF-8 of 1 to {} bytes", bounds::kMaxTenantBytes));
    }
  }
  if (Status status = put_in_order(terms.tenants, "tenants"); !status) return status.error();
  if (Status status = put_in_order(terms.models, "models"); !status) return status.error();
  if (Status status = put_in_order(terms.supersedes, "superseded anchors"); !status) return status.error();
  // NaN fails every comparison; -0 would be another way to write 0.
  if (!(terms.floor >= 0 && terms.floor < 1))
    return caller_error("an anchor's floor must be at least 0 and below 1");
  if (!(terms.ceiling >= terms.floor && terms.ceiling <= 1)) {
    return caller_error("an anchor's ceiling must be at most 1 and not below its floor");
  }
  if (terms.floor == 0) terms.floor = 0;
  if (terms.ceiling == 0) terms.ceiling = 0;
  if (outside(terms.not_before) || outside(terms.not_after)) {
    return caller_error("an anchor is valid between 1970 and 9999");
  }
  if (terms.not_before && terms.not_after && *terms.not_before > *terms.not_after) {
    return caller_error("an anchor's not-after must not be before its not-before");
  }
  return terms;
}

std::string format_terms(const Terms& terms) {
  std::string out;
  for (const std::string& tenant : terms.tenants) out += fmt::format("tenant {}\n", tenant);
  for (const Digest& model : terms.models) out += fmt::format("model {}\n", to_hex(model));
  if (terms.floor != 0) out += fmt::format("floor {}\n", shortest(terms.floor));
  if (terms.ceiling != 1) out += fmt::format("ceiling {}\n", shortest(terms.ceiling));
  if (terms.not_before) out += fmt::format("not-before {}\n", format_utc(*terms.not_before));
  if (terms.not_after) out += fmt::format("not-after {}\n", format_utc(*terms.not_after));
  for (const Digest& id : terms.supersedes) out += fmt::format("supersedes {}\n", to_hex(id));
  return out;
}

Result<Terms> take_terms(std::string_view& rest) {
  Terms terms;
  std::string_view value;
  while (take_line(rest, "tenant ", value)) terms.tenants.emplace_back(value);
  if (Status status = take_digests(rest, "model ", terms.models); !status) return status.error();
  if (Status status = take_share(rest, "floor ", terms.floor); !status) return status.error();
  if (Status status = take_share(rest, "ceiling ", terms.ceiling); !status) return status.error();
  if (Status status = take_time(rest, "not-before ", terms.not_before); !status) return status.error();
  if (Status status = take_time(rest, "not-after ", terms.not_after); !status) return status.error();
  if (Status status = take_digests(rest, "supersedes ", terms.supersedes); !status) return status.error();
  return terms;
}

}  // namespace fieldprint::anchor
