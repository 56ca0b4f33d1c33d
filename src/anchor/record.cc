#include "anchor/record.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "anchor/head_line.h"
#include "base/bounds.h"
#include "cbor/cbor.h"

namespace fieldprint::anchor {
namespace {

using cbor::CborReader;
using cbor::CborWriter;

constexpr std::string_view kActionDomain = "fieldprint-anchor-record 1\n";
constexpr std::string_view kPolicyDomain = "fieldprint-policy-record 1\n";

/// A map whose keys are put in the order of their encodings (RFC 8949 §4.2.1).
class MapWriter {
 public:
  template <class Write>
  MapWriter& put(std::string_view key, const Write& write) {
    CborWriter name;
    name.text(key);
    CborWriter value;
    write(value);
    entries_.emplace_back(name.take(), value.take());
    return *this;
  }
  MapWriter& text(std::string_view key, std::string_view value) {
    return put(key, [&](CborWriter& w) { w.text(value); });
  }
  MapWriter& number(std::string_view key, std::uint64_t value) {
    return put(key, [&](CborWriter& w) { w.unsigned_integer(value); });
  }
  MapWriter& bytes(std::string_view key, std::span<const std::uint8_t> value) {
    return put(key, [&](CborWriter& w) { w.byte_string(value); });
  }
  Bytes finish() {
    std::sort(entries_.begin(), entries_.end());
    CborWriter out;
    out.map(entries_.size());
    for (const auto& [key, value] : entries_) {
      out.append(key);
      out.append(value);
    }
    return out.take();
  }

 private:
  std::vector<std::pair<Bytes, Bytes>> entries_;
};

MapWriter map_of(const ActionRecord& record) {
  MapWriter map;
  map.text("record", "anchor").text("action", name_of(record.action)).bytes("anchor", record.anchor);
  if (record.action == Role::kPropose) map.bytes("canonical", record.canonical);
  if (record.action == Role::kRevoke) map.text("reason", record.reason);
  map.number("time", static_cast<std::uint64_t>(record.time)).bytes("policy", record.policy);
  map.text("ledger", record.ledger).text("key", record.key);
  return map;
}

void put_key(CborWriter& w, const PolicyKey& key) {
  w.map(2);
  w.text("key");
  w.text(key.key.text());
  w.text("roles");
  w.array(key.roles.size());
  for (const Role role : key.roles) w.text(name_of(role));
}

MapWriter map_of(const Policy& policy) {
  MapWriter map;
  map.text("record", "policy").number("number", policy.number).bytes("parent", policy.parent);
  map.text("ledger", policy.ledger).number("time", static_cast<std::uint64_t>(policy.time));
  map.number("single_operator", policy.single_operator ? 1 : 0);
  map.put("keys", [&](CborWriter& w) {
    w.array(policy.keys.size());
    for (const PolicyKey& key : policy.keys) put_key(w, key);
  });
  map.put("thresholds", [&](CborWriter& w) {  // in the order of kRoles
    w.array(policy.thresholds.size());
    for (const std::uint32_t threshold : policy.thresholds) w.unsigned_integer(threshold);
  });
  return map;
}

std::string message(std::string_view domain, const Bytes& encoded) {
  std::string out(domain);
  out.append(encoded.begin(), encoded.end());
  return out;
}

// Readers of values. They are lenient about the encoding: what does not encode to the same bytes is refused
// in the end.
Status take(Result<std::string_view> text, std::string& out) {
  if (!text) return text.error();
  out = std::string(*text);
  return {};
}

Status take(Result<std::span<const std::uint8_t>> bytes, Bytes& out) {
  if (!bytes) return bytes.error();
  out.assign(bytes->begin(), bytes->end());
  return {};
}

Status take(Result<std::span<const std::uint8_t>> bytes, Digest& out) {
  if (!bytes) return bytes.error();
  if (bytes->size() != out.size()) return caller_error("expected a SHA-256 digest");
  std::copy(bytes->begin(), bytes->end(), out.begin());
  return {};
}

template <class T>
Status take_number(Result<std::uint64_t> number, T& out) {
  if (!number) return number.error();
  if (!std::in_range<T>(*number)) return caller_error("a number is too large");
  out = static_cast<T>(*number);
  return {};
}

Status take_role(CborReader& r, Role& out) {
  auto name = r.text();
  if (!name) return name.error();
  auto found = role(*name);
  if (!found) return found.error();
  out = *found;
  return {};
}

using ReadValue = std::function<Status(CborReader&, std::string_view key)>;

Status read_map(CborReader& r, const ReadValue& read_value) {
  auto entries = r.map();
  if (!entries) return entries.error();
  for (std::size_t i = 0; i < *entries; ++i) {
    auto key = r.text();
    if (!key) return key.error();
    if (Status status = read_value(r, *key); !status) {
      return caller_error(fmt::format("{}: {}", *key, status.error().message));
    }
  }
  return {};
}

Status read_array(CborReader& r, std::size_t most, const std::function<Status(std::size_t)>& read_item) {
  auto count = r.array();
  if (!count) return count.error();
  if (*count > most) return caller_error(fmt::format("more than {} entries", most));
  for (std::size_t i = 0; i < *count; ++i) {
    if (Status status = read_item(i); !status) return status;
  }
  return {};
}

Status unknown_field() { return caller_error("there is no such field"); }

Status read_action_field(CborReader& r, std::string_view key, ActionRecord& out) {
  if (key == "record") return r.skip();
  if (key == "action") return take_role(r, out.action);
  if (key == "anchor") return take(r.byte_string(), out.anchor);
  if (key == "canonical") return take(r.byte_string(), out.canonical);
  if (key == "reason") return take(r.text(), out.reason);
  if (key == "time") return take_number(r.unsigned_integer(), out.time);
  if (key == "policy") return take(r.byte_string(), out.policy);
  if (key == "ledger") return take(r.text(), out.ledger);
  if (key == "key") return take(r.text(), out.key);
  if (key == "signature") return take(r.byte_string(), out.signature);
  return unknown_field();
}

Status read_policy_key(CborReader& r, std::vector<PolicyKey>& out) {
  std::string text;
  std::vector<Role> roles;
  Status status = read_map(r, [&](CborReader&, std::string_view key) {
    if (key == "key") return take(r.text(), text);
    if (key != "roles") return unknown_field();
    return read_array(r, kRoles.size(), [&](std::size_t) {
      roles.emplace_back();
      return take_role(r, roles.back());
    });
  });
  if (!status) return status;
  auto key = ledger::VerifierKey::parse(text);
  if (!key) return key.error();
  out.push_back({std::move(*key), std::move(roles)});
  return {};
}

Status read_signature(CborReader& r, std::vector<KeySignature>& out) {
  KeySignature signature;
  Status status = read_map(r, [&](CborReader&, std::string_view key) {
    if (key == "key") return take(r.text(), signature.key);
    if (key == "signature") return take(r.byte_string(), signature.signature);
    return unknown_field();
  });
  out.push_back(std::move(signature));
  return status;
}

Status read_policy_field(CborReader& r, std::string_view key, PolicyRecord& out) {
  Policy& policy = out.policy;
  if (key == "record") return r.skip();
  if (key == "number") return take_number(r.unsigned_integer(), policy.number);
  if (key == "parent") return take(r.byte_string(), policy.parent);
  if (key == "ledger") return take(r.text(), policy.ledger);
  if (key == "time") return take_number(r.unsigned_integer(), policy.time);
  if (key == "single_operator") {
    auto flag = r.unsigned_integer();
    policy.single_operator = flag.ok() && *flag == 1;
    return flag ? Status() : Status(flag.error());
  }
  if (key == "keys") {
    return read_array(r, bounds::kMaxPolicyKeys,
                      [&](std::size_t) { return read_policy_key(r, policy.keys); });
  }
  if (key == "thresholds") {
    return read_array(r, policy.thresholds.size(),
                      [&](std::size_t i) { return take_number(r.unsigned_integer(), policy.thresholds[i]); });
  }
  if (key == "signatures") {
    return read_array(r, bounds::kMaxPolicyKeys,
                      [&](std::size_t) { return read_signature(r, out.signatures); });
  }
  return unknown_field();
}

template <class Record, class ReadField>
Result<Record> decode(std::span<const std::uint8_t> leaf, std::string_view what,
                      const ReadField& read_field) {
  Record record;
  CborReader reader(leaf);
  Status status =
      read_map(reader, [&](CborReader& r, std::string_view key) { return read_field(r, key, record); });
  if (!status) return caller_error(fmt::format("malformed {} record: {}", what, status.error().message));
  const Bytes again = encode(record);
  if (!std::equal(again.begin(), again.end(), leaf.begin(), leaf.end())) {
    return caller_error(
        fmt::format("malformed {} record: a field is missing, or not in the deterministic encoding", what));
  }
  return record;
}

Bytes signature_of(std::string_view text, const ledger::SignerKey& signer) {
  const ledger::Signature signature = signer.sign(text);
  return {signature.begin(), signature.end()};
}

}  // namespace

std::string signed_message(const ActionRecord& record) {
  return message(kActionDomain, map_of(record).finish());
}

std::string signed_message(const Policy& policy) { return message(kPolicyDomain, map_of(policy).finish()); }

Digest digest_of(const Policy& policy) { return sha256(signed_message(policy)); }

void sign(ActionRecord& record, const ledger::SignerKey& signer) {
  record.key = signer.verifier().text();
  record.signature = signature_of(signed_message(record), signer);
}

void sign(PolicyRecord& record, const ledger::SignerKey& signer) {
  KeySignature added{signer.verifier().text(), signature_of(signed_message(record.policy), signer)};
  std::erase_if(record.signatures, [&](const KeySignature& s) { return s.key == added.key; });
  const auto place = std::find_if(record.signatures.begin(), record.signatures.end(),
                                  [&](const KeySignature& s) { return s.key > added.key; });
  record.signatures.insert(place, std::move(added));
}

Bytes encode(const ActionRecord& record) {
  return map_of(record).bytes("signature", record.signature).finish();
}

Bytes encode(const PolicyRecord& record) {
  return map_of(record.policy)
      .put("signatures",
           [&](CborWriter& w) {
             w.array(record.signatures.size());
             for (const KeySignature& signature : record.signatures) {
               w.map(2);
               w.text("key");
               w.text(signature.key);
               w.text("signature");
               w.byte_string(signature.signature);
             }
           })
      .finish();
}

Result<ActionRecord> decode_action(std::span<const std::uint8_t> leaf) {
  auto record = decode<ActionRecord>(leaf, "anchor", read_action_field);
  if (!record) return record;
  if (record->action == Role::kAdmin)
    return caller_error("malformed anchor record: nobody can admin an anchor");
  const bool reason_ok = record->action == Role::kRevoke
                             ? !record->reason.empty() && is_line(record->reason) &&
                                   std::cmp_less_equal(record->reason.size(), bounds::kMaxReasonBytes)
                             : record->reason.empty();
  if (!reason_ok) {
    return caller_error(
        fmt::format("malformed anchor record: the reason of a revocation must be one line of 1 to {} bytes",
                    bounds::kMaxReasonBytes));
  }
  return record;
}

Result<PolicyRecord> decode_policy(std::span<const std::uint8_t> leaf) {
  return decode<PolicyRecord>(leaf, "policy", read_policy_field);
}

std::optional<std::int64_t> time_of(std::span<const std::uint8_t> leaf) {
  const std::string_view kind = cbor::text_under("record", leaf);
  if (kind == "anchor") {
    if (auto record = decode_action(leaf)) return record->time;
  }
  if (kind == "policy") {
    if (auto record = decode_policy(leaf)) return record->policy.time;
  }
  return {};
}

}  // namespace fieldprint::anchor
