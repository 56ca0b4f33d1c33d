#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "anchor/terms.h"
#include "base/result.h"
#include "base/sha256.h"
#include "core/request.h"

namespace fieldprint::anchor {

enum class AnchorType { kPolicy, kIdentity, kMemory };

std::string_view name_of(AnchorType type);  ///< "policy", "identity", "memory"
Result<AnchorType> anchor_type(std::string_view name);

/// A text to pin, with the little metadata that belongs to its identity. Its canonical bytes are UTF-8:
///
///     fieldprint-anchor 1\n
///     type policy\n
///     name NAME\n          only if there is a name
///     TERMS                only where they say something (format_terms)
///     \n
///     TEXT                 to the end; no newline is added
///
/// The head ends at the first empty line, and no head line can hold a newline, so the form is unambiguous.
/// The text is normalised before: a leading byte order mark goes, CR LF and CR become LF, line ends at the
/// end go.
class Anchor {
 public:
  /// Refuses text that is empty, too long (bounds::kMaxAnchorBytes), no UTF-8 or holds NUL, names that are
  /// not one line of at most bounds::kMaxAnchorNameBytes, and terms that contradict themselves. An empty name
  /// means none.
  static Result<Anchor> make(AnchorType type, std::string_view name, std::string_view text, Terms terms = {});

  /// Reads canonical bytes. Refuses all bytes that canonical_bytes() would not give back.
  static Result<Anchor> parse(std::span<const std::uint8_t> canonical);

  /// Reads a file of canonical bytes, or makes an anchor without name and terms from any other text file.
  static Result<Anchor> load(const std::string& path, AnchorType type = AnchorType::kPolicy);

  AnchorType type() const { return type_; }
  const std::string& name() const { return name_; }
  const Terms& terms() const { return terms_; }
  const std::string& text() const { return text_; }
  std::vector<std::uint8_t> canonical_bytes() const;
  /// SHA-256 of the canonical bytes: the anchor's identity.
  const Digest& id() const { return id_; }

  bool operator==(const Anchor&) const = default;

 private:
  Anchor(AnchorType type, std::string name, Terms terms, std::string text);
  AnchorType type_;
  std::string name_;
  Terms terms_;
  std::string text_;
  Digest id_;
};

/// The anchors that one request binds, in the order in which they enter the cache.
class AnchorSet {
 public:
  AnchorSet() = default;
  /// Refuses more than bounds::kMaxAnchors anchors and the same anchor twice.
  static Result<AnchorSet> make(std::vector<Anchor> anchors);

  const std::vector<Anchor>& anchors() const { return anchors_; }
  bool empty() const { return anchors_.empty(); }
  /// SHA-256 of "fieldprint-anchor-set 1\n" and the ids in order.
  Digest digest() const;
  /// What holds for all of them and for the request: the largest floor and the smallest ceiling, so that a
  /// request can only tighten its anchors' bounds. Refuses a floor above the ceiling.
  Result<core::AnchorBounds> bounds(const core::AnchorBounds& requested) const;
  /// The texts in order, a blank line between two of them.
  std::string text() const;

 private:
  std::vector<Anchor> anchors_;
};

}  // namespace fieldprint::anchor
