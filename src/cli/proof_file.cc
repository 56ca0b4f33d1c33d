#include "cli/proof_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "base/base64.h"
#include "base/sha256.h"
#include "ledger/merkle.h"

namespace fieldprint::cli {
namespace {

using Json = nlohmann::json;

Error malformed(std::string_view what) { return caller_error(fmt::format("malformed proof: {}", what)); }

Status get(const Json& object, const char* key, std::uint64_t& out) {
  const auto value = object.find(key);
  if (value == object.end()) return malformed(fmt::format("\"{}\" is missing", key));
  if (!value->is_number_unsigned()) {
    return malformed(fmt::format("\"{}\" must be a whole number from 0 to 18446744073709551615", key));
  }
  out = value->get<std::uint64_t>();
  return {};
}

Status decode(const Json& value, std::string_view name, ProofBytes& out) {
  const auto bytes = value.is_string() ? base64_decode(value.get_ref<const std::string&>()) : std::nullopt;
  if (!bytes) return malformed(fmt::format("{} must be base64 in a string", name));
  out = *bytes;
  return {};
}

Status get(const Json& object, const char* key, ProofBytes& out) {
  const auto value = object.find(key);
  if (value == object.end()) return malformed(fmt::format("\"{}\" is missing", key));
  return decode(*value, fmt::format("\"{}\"", key), out);
}

Status get(const Json& object, const char* key, std::vector<ProofBytes>& out) {
  const auto value = object.find(key);
  if (value == object.end()) return malformed(fmt::format("\"{}\" is missing; an empty proof is []", key));
  if (value->is_null()) return {};
  if (!value->is_array()) return malformed(fmt::format("\"{}\" must be a list", key));
  for (const Json& item : *value) {
    out.emplace_back();
    Status status = decode(item, fmt::format("\"{}\"[{}]", key, out.size() - 1), out.back());
    if (!status) return status;
  }
  return {};
}

Status first_error(std::initializer_list<Status> all) {
  for (const Status& status : all) {
    if (!status) return status;
  }
  return {};
}

// Two values for one key would let two readers check two different proofs.
Result<Json> parse_object(std::string_view text) {
  // The parser takes it for the end of the text.
  if (text.find('\0') != std::string_view::npos) return malformed("there is a NUL byte in it");
  std::set<std::string> keys;
  std::string twice;
  const Json::parser_callback_t watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth == 1 && event == Json::parse_event_t::key && !keys.insert(value.get<std::string>()).second) {
      twice = value.get<std::string>();
    }
    return true;
  };
  Json object = Json::parse(text, watch, false);
  if (object.is_discarded()) return malformed("it is not JSON");
  if (!object.is_object()) return malformed("expected a JSON object");
  if (!twice.empty()) return malformed(fmt::format("\"{}\" is there twice", twice));
  return object;
}

bool has_any(const Json& object, std::initializer_list<const char*> keys) {
  return std::any_of(keys.begin(), keys.end(), [&](const char* key) { return object.contains(key); });
}

bool to_digest(const ProofBytes& bytes, Digest& out) {
  if (bytes.size() != out.size()) return false;
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return true;
}

Error no_hash(std::string_view name, const ProofBytes& bytes) {
  return refuted(fmt::format("{} has {} bytes, a SHA-256 hash has 32", name, bytes.size()));
}

Status to_digests(const std::vector<ProofBytes>& proof, std::vector<Digest>& out) {
  for (const ProofBytes& bytes : proof) {
    out.emplace_back();
    if (!to_digest(bytes, out.back())) return no_hash(fmt::format("\"proof\"[{}]", out.size() - 1), bytes);
  }
  return {};
}

Status check(const InclusionProof& proof) {
  Digest root{};
  Digest leaf{};
  std::vector<Digest> hashes;
  if (!to_digest(proof.root, root)) return no_hash("\"root\"", proof.root);
  if (!to_digest(proof.leaf_hash, leaf)) return no_hash("\"leafHash\"", proof.leaf_hash);
  if (Status status = to_digests(proof.hashes, hashes); !status) return status;
  return ledger::verify_inclusion(leaf, proof.leaf_index, proof.tree_size, hashes, root);
}

Status check(const ConsistencyProof& proof) {
  // Nothing is hashed for a tree and itself: its root may be any bytes, as in the published vectors.
  if (proof.old_size == proof.new_size && proof.old_size > 0 && proof.hashes.empty()) {
    return proof.old_root == proof.new_root ? Status()
                                            : Status(refuted("two different roots for one tree size"));
  }
  Digest old_root{};
  Digest new_root{};
  std::vector<Digest> hashes;
  if (!to_digest(proof.old_root, old_root)) return no_hash("\"root1\"", proof.old_root);
  if (!to_digest(proof.new_root, new_root)) return no_hash("\"root2\"", proof.new_root);
  if (Status status = to_digests(proof.hashes, hashes); !status) return status;
  return ledger::verify_consistency(proof.old_size, old_root, proof.new_size, new_root, hashes);
}

}  // namespace

Result<AnyProof> parse_proof_file(std::string_view text) {
  auto object = parse_object(text);
  if (!object) return object.error();
  const bool inclusion = has_any(*object, {"leafIdx", "treeSize"});
  const bool consistency = has_any(*object, {"size1", "size2"});
  if (inclusion == consistency) {
    return malformed(
        "expected the keys leafIdx, treeSize, root, leafHash and proof, or size1, size2, root1, root2 and "
        "proof");
  }
  if (inclusion) {
    InclusionProof proof;
    Status status =
        first_error({get(*object, "leafIdx", proof.leaf_index), get(*object, "treeSize", proof.tree_size),
                     get(*object, "root", proof.root), get(*object, "leafHash", proof.leaf_hash),
                     get(*object, "proof", proof.hashes)});
    if (!status) return status.error();
    return AnyProof(std::move(proof));
  }
  ConsistencyProof proof;
  Status status = first_error({get(*object, "size1", proof.old_size), get(*object, "size2", proof.new_size),
                               get(*object, "root1", proof.old_root), get(*object, "root2", proof.new_root),
                               get(*object, "proof", proof.hashes)});
  if (!status) return status.error();
  return AnyProof(std::move(proof));
}

Status check_proof(const AnyProof& proof) {
  return std::visit([](const auto& one) { return check(one); }, proof);
}

}  // namespace fieldprint::cli
