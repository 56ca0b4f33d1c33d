#include "anchor/anchor.h"

#include <algorithm>
#include <array>
#include <utility>

#include "anchor/head_line.h"
#include "base/bounds.h"
#include "base/file.h"
#include "base/utf8.h"

namespace fieldprint::anchor {
namespace {

constexpr std::string_view kMagic = "fieldprint-anchor 1\n";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::array kTypes = {AnchorType::kPolicy, AnchorType::kIdentity, AnchorType::kMemory};

std::string normalise(std::string_view text) {
  while (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else if (i + 1 == text.size() || text[i + 1] != '\n') {
      out += '\n';
    }
  }
  out.erase(out.find_last_not_of('\n') + 1);
  return out;
}

std::string canonical_text(AnchorType type, std::string_view name, const Terms& terms,
                           std::string_view text) {
  const std::string name_line = name.empty() ? std::string() : fmt::format("name {}\n", name);
  return fmt::format("{}type {}\n{}{}\n{}", kMagic, name_of(type), name_line, format_terms(terms), text);
}

Error malformed(std::string_view what) { return caller_error(fmt::format("malformed anchor: {}", what)); }

}  // namespace

std::string_view name_of(AnchorType type) {
  switch (type) {
    case AnchorType::kPolicy:
      return "policy";
    case AnchorType::kIdentity:
      return "identity";
    case AnchorType::kMemory:
      return "memory";
  }
  CHECK(false, "no such anchor type: {}", static_cast<int>(type));
  return {};
}

Result<AnchorType> anchor_type(std::string_view name) {
  const auto found =
      std::find_if(kTypes.begin(), kTypes.end(), [&](AnchorType t) { return name_of(t) == name; });
  if (found == kTypes.end()) return caller_error("an anchor's type must be policy, identity or memory");
  return *found;
}

Anchor::Anchor(AnchorType type, std::string name, Terms terms, std::string text)
    : type_(type),
      name_(std::move(name)),
      terms_(std::move(terms)),
      text_(std::move(text)),
      id_(sha256(canonical_text(type_, name_, terms_, text_))) {}

Result<Anchor> Anchor::make(AnchorType type, std::string_view name, std::string_view text, Terms terms) {
  if (std::cmp_greater(text.size(), bounds::kMaxAnchorBytes)) {
    return caller_error(
        fmt::format("an anchor of {} bytes is over the limit of {}", text.size(), bounds::kMaxAnchorBytes));
  }
  if (!valid_utf8(text)) return caller_error("an anchor's text must be UTF-8; convert the file first");
  if (text.find('\0') != std::string_view::npos)
    return caller_error("an anchor's text must not hold a NUL byte");
  std::string normal = normalise(text);
  if (normal.empty()) return caller_error("an anchor's text must not be empty");
  const bool name_ok = std::cmp_less_equal(name.size(), bounds::kMaxAnchorNameBytes) && is_line(name);
  if (!name_ok) {
    return caller_error(fmt::format("an anchor's name must be one line of UTF-8 of at most {} bytes",
                                    bounds::kMaxAnchorNameBytes));
  }
  auto sound = checked(std::move(terms));
  if (!sound) return sound.error();
  if (std::cmp_greater(canonical_text(type, name, *sound, normal).size(), bounds::kMaxAnchorCanonicalBytes)) {
    return caller_error(
        fmt::format("an anchor with its tenants, models and predecessors may have {} bytes; this has more",
                    bounds::kMaxAnchorCanonicalBytes));
  }
  return Anchor(type, std::string(name), std::move(*sound), std::move(normal));
}

Result<Anchor> Anchor::parse(std::span<const std::uint8_t> canonical) {
  const std::string_view whole(reinterpret_cast<const char*>(canonical.data()), canonical.size());
  std::string_view rest = whole;
  if (!rest.starts_with(kMagic)) return malformed("it does not start with \"fieldprint-anchor 1\"");
  rest.remove_prefix(kMagic.size());
  std::string_view type_name;
  if (!take_line(rest, "type ", type_name)) return malformed("no type");
  auto type = anchor_type(type_name);
  if (!type) return malformed(type.error().message);
  std::string_view name;
  (void)take_line(rest, "name ", name);
  auto terms = take_terms(rest);
  if (!terms) return malformed(terms.error().message);
  std::string_view blank;
  if (!rest.starts_with('\n') || !take_line(rest, "", blank))
    return malformed("no empty line above the text");
  auto anchor = make(*type, name, rest, std::move(*terms));
  if (!anchor) return malformed(anchor.error().message);
  if (canonical_text(*type, anchor->name(), anchor->terms(), anchor->text()) != whole) {
    return malformed("its bytes are not in canonical form");
  }
  return anchor;
}

Result<Anchor> Anchor::load(const std::string& path, AnchorType type) {
  auto bytes = read_file(path, bounds::kMaxAnchorCanonicalBytes);
  if (!bytes) return bytes.error();
  const std::string_view text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  auto anchor = text.starts_with(kMagic) ? parse(*bytes) : make(type, {}, text);
  if (!anchor) return Error{anchor.error().kind, fmt::format("{}: {}", path, anchor.error().message)};
  return anchor;
}

std::vector<std::uint8_t> Anchor::canonical_bytes() const {
  const std::string text = canonical_text(type_, name_, terms_, text_);
  return {text.begin(), text.end()};
}

Result<AnchorSet> AnchorSet::make(std::vector<Anchor> anchors) {
  if (std::cmp_greater(anchors.size(), bounds::kMaxAnchors)) {
    return caller_error(
        fmt::format("{} anchors are over the limit of {}", anchors.size(), bounds::kMaxAnchors));
  }
  for (std::size_t i = 0; i < anchors.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (anchors[i].id() == anchors[j].id()) {
        return caller_error(fmt::format("anchors {} and {} are the same (id {}); give it once", j + 1, i + 1,
                                        to_hex(anchors[i].id())));
      }
    }
  }
  AnchorSet set;
  set.anchors_ = std::move(anchors);
  return set;
}

Digest AnchorSet::digest() const {
  Sha256 hash;
  hash.update("fieldprint-anchor-set 1\n");
  for (const Anchor& anchor : anchors_) hash.update(anchor.id());
  return hash.finish();
}

Result<core::AnchorBounds> AnchorSet::bounds(const core::AnchorBounds& requested) const {
  core::AnchorBounds out = requested;
  for (const Anchor& anchor : anchors_) {
    out.floor = std::max(out.floor, anchor.terms().floor);
    out.ceiling = std::min(out.ceiling, anchor.terms().ceiling);
  }
  if (out.floor <= out.ceiling) return out;
  return caller_error(fmt::format(
      "the anchors' share of attention cannot be at least {} and at most {}; give other bounds or "
      "bind other anchors",
      out.floor, out.ceiling));
}

std::string AnchorSet::text() const {
  std::string out;
  for (const Anchor& anchor : anchors_) {
    if (!out.empty()) out += "\n\n";
    out += anchor.text();
  }
  return out;
}

}  // namespace fieldprint::anchor
