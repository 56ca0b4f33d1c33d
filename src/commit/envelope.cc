#include "commit/envelope.h"

#include <algorithm>

#include "commit/encoding.h"
#include "commit/validate.h"
#include "ledger/checkpoint.h"
#include "ledger/merkle.h"

namespace fieldprint::commit {
namespace {

constexpr std::size_t kCheckBytes = 4;

// Calls visit(path, member) for every field that has a check of its own: nested maps are taken apart, lists
// are not.
template <class T, class Visit>
void for_each_checked_field(const std::string& outer, const T& value, const Visit& visit) {
  detail::for_each_field(value, [&](const char* name, const auto& member) {
    const std::string path = detail::path_of(outer, name);
    if constexpr (detail::HasFields<std::remove_cvref_t<decltype(member)>>) {
      for_each_checked_field(path, member, visit);
    } else if (path != "field_checks") {
      visit(path, member);
    }
  });
}

void append_check(Bytes& checks, std::string_view name, std::span<const std::uint8_t> bytes) {
  constexpr std::uint8_t kEndOfName[] = {0};
  const Digest digest = Sha256().update(name).update(kEndOfName).update(bytes).finish();
  checks.insert(checks.end(), digest.begin(), digest.begin() + kCheckBytes);
}

Bytes make_checks(const Receipt& receipt) {
  Bytes checks;
  for_each_checked_field("", receipt, [&](const std::string& path, const auto& member) {
    append_check(checks, path, detail::encoded(member));
  });
  append_check(checks, "field_checks", Bytes(checks));
  return checks;
}

bool same_check(const Bytes& a, const Bytes& b, std::size_t i) {
  const auto from = static_cast<std::ptrdiff_t>(i * kCheckBytes);
  return std::equal(a.begin() + from, a.begin() + from + std::ptrdiff_t{kCheckBytes}, b.begin() + from);
}

void check_fields(const Receipt& receipt, std::vector<Check>& out) {
  const Bytes expected = make_checks(receipt);
  const std::vector<std::string> names = field_names(receipt);
  Bytes stored = receipt.field_checks;
  Bytes own;
  if (stored.size() == expected.size()) {
    append_check(own, "field_checks", std::span(stored).first(stored.size() - kCheckBytes));
  }
  if (own.empty() || !std::equal(own.begin(), own.end(), stored.end() - std::ptrdiff_t{kCheckBytes})) {
    out.push_back({"field_checks", false, "the field checks themselves were altered"});
    return;
  }
  std::size_t altered = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (same_check(stored, expected, i)) continue;
    out.push_back({names[i], false, "was altered after the receipt was made"});
    ++altered;
  }
  if (altered == 0)
    out.push_back({"field_checks", true, fmt::format("{} fields are as they were sealed", names.size())});
}

void check_digests(const Body& body, std::vector<Check>& out) {
  for (std::size_t i = 0; i < body.anchors.size(); ++i) {
    const bool ok = sha256(body.anchors[i].canonical) == body.anchors[i].id;
    out.push_back({fmt::format("anchors[{}].id", i), ok,
                   ok ? "is the digest of the anchor's canonical bytes"
                      : "is not the digest of the anchor's canonical bytes"});
  }
  const bool ok = digest_of(body.output_tokens) == body.output_digest;
  out.push_back({"output_digest", ok,
                 ok ? "is the digest of the output tokens" : "is not the digest of the output tokens"});
}

Check check_trusted(const ledger::VerifierKey& key, std::span<const ledger::VerifierKey> trusted) {
  if (trusted.empty()) {
    return {"trusted_key", true, fmt::format("no trusted keys were given; the receipt names {}", key.text())};
  }
  const bool ok = std::find(trusted.begin(), trusted.end(), key) != trusted.end();
  return {"trusted_key", ok,
          fmt::format("{} is {}", key.text(), ok ? "trusted" : "not among the trusted keys")};
}

void check_ledger(const Receipt& receipt, std::span<const ledger::VerifierKey> trusted,
                  std::vector<Check>& out) {
  const auto key = ledger::VerifierKey::parse(receipt.verifier_key);
  out.push_back({"verifier_key", key.ok(), key ? "is well formed" : key.error().message});
  if (!key) return;
  out.push_back(check_trusted(*key, trusted));

  const auto checkpoint = ledger::open_checkpoint(receipt.checkpoint, {&*key, 1});
  out.push_back({"checkpoint", checkpoint.ok(),
                 checkpoint ? fmt::format("signed by {}", key->text()) : checkpoint.error().message});
  if (!checkpoint) return;
  const bool same_size = checkpoint->size == receipt.tree_size;
  out.push_back(
      {"tree_size", same_size,
       same_size ? fmt::format("the checkpoint states {} leaves", checkpoint->size)
                 : fmt::format("is {}, but the checkpoint states {}", receipt.tree_size, checkpoint->size)});

  const bool before = receipt.body.anchors_at <= receipt.leaf_index;
  out.push_back({"anchors_at", before,
                 fmt::format("the anchors were in force in a ledger of {} leaves, {} leaf {}",
                             receipt.body.anchors_at, before ? "before" : "not before", receipt.leaf_index)});
  const Digest leaf = ledger::leaf_hash(leaf_of(detail::encoded(receipt.body)));
  const Status included = ledger::verify_inclusion(leaf, receipt.leaf_index, checkpoint->size,
                                                   receipt.inclusion_proof, checkpoint->root);
  out.push_back({"inclusion_proof", included.ok(),
                 included ? fmt::format("the ledger holds the body as leaf {}", receipt.leaf_index)
                          : fmt::format("the ledger does not hold this body: {}", included.error().message)});
}

}  // namespace

std::vector<std::string> field_names(const Receipt& receipt) {
  std::vector<std::string> names;
  for_each_checked_field("", receipt, [&](const std::string& path, const auto&) { names.push_back(path); });
  return names;
}

Status seal(Receipt& receipt) {
  if (const auto invalid = find_invalid(receipt)) return field_error(*invalid);
  receipt.field_checks = make_checks(receipt);
  return {};
}

std::vector<Check> check_envelope(const Receipt& receipt, std::span<const ledger::VerifierKey> trusted) {
  if (const auto malformed = find_malformed(receipt)) return {{malformed->field, false, malformed->problem}};
  std::vector<Check> out;
  check_fields(receipt, out);
  if (const auto invalid = find_invalid(receipt)) out.push_back({invalid->field, false, invalid->problem});
  check_digests(receipt.body, out);
  check_ledger(receipt, trusted, out);
  return out;
}

}  // namespace fieldprint::commit
