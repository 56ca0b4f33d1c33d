#include "cli/proof_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/base64.h"
#include "ledger/growth.h"

namespace fieldprint::cli {
namespace {

using Json = nlohmann::json;

// 0: holds, 1: does not, 2: malformed; the command's exit code.
int verdict(const std::string& text) {
  const auto proof = parse_proof_file(text);
  if (!proof) return proof.error().kind == ErrorKind::kCaller ? 2 : 3;
  const Status status = check_proof(*proof);
  if (status.ok()) return 0;
  return status.error().kind == ErrorKind::kRefuted ? 1 : 3;
}

Digest leaf(std::uint64_t i) {
  return ledger::leaf_hash(std::vector<std::uint8_t>{static_cast<std::uint8_t>(i)});
}

ledger::Growth tree_of(std::uint64_t size) {
  ledger::Growth growth{ledger::CompactTree()};
  for (std::uint64_t i = 0; i < size; ++i) growth.append(leaf(i));
  return growth;
}

Json list(const std::vector<Digest>& hashes) {
  Json out = Json::array();
  for (const Digest& hash : hashes) out.push_back(base64_encode(hash));
  return out;
}

Json inclusion(std::uint64_t index, std::uint64_t size) {
  const auto growth = tree_of(size);
  return {{"leafIdx", index},
          {"treeSize", size},
          {"root", base64_encode(growth.root())},
          {"leafHash", base64_encode(leaf(index))},
          {"proof", list(growth.inclusion_proof(index))}};
}

Json consistency(std::uint64_t from, std::uint64_t to) {
  const auto growth = tree_of(to);
  const auto proof = ledger::consistency_proof(
      from, to, [&](ledger::NodeId id) -> Result<Digest> { return growth.completed(id.level).at(id.index); });
  return {{"size1", from},
          {"size2", to},
          {"root1", base64_encode(tree_of(from).root())},
          {"root2", base64_encode(growth.root())},
          {"proof", list(*proof)}};
}

Json with(Json object, const char* key, Json value) {
  object[key] = std::move(value);
  return object;
}

TEST(ProofFile, RightProofsHold) {
  for (std::uint64_t size = 1; size < 20; ++size) {
    for (std::uint64_t i = 0; i < size; ++i) {
      EXPECT_EQ(verdict(inclusion(i, size).dump()), 0);
      EXPECT_EQ(verdict(consistency(i + 1, size).dump()), 0);
    }
  }
  EXPECT_EQ(verdict(with(inclusion(0, 1), "proof", nullptr).dump()), 0);
  EXPECT_EQ(verdict(with(with(inclusion(3, 7), "desc", "more"), "wantErr", false).dump()), 0);
}

TEST(ProofFile, WellFormedButWrongProofsDoNotHold) {
  const Json good = inclusion(2, 7);
  const std::string other = base64_encode(leaf(99));
  const std::uint64_t huge = ~std::uint64_t{0};
  for (const Json& bad :
       {with(good, "leafIdx", 3), with(good, "leafIdx", 7), with(good, "leafIdx", huge),
        with(good, "treeSize", 0), with(good, "treeSize", 14), with(good, "treeSize", huge),
        with(with(good, "leafIdx", huge - 1), "treeSize", huge), with(good, "root", other),
        with(good, "root", ""), with(good, "leafHash", other), with(good, "leafHash", ""),
        with(good, "leafHash", "AAAA"), with(good, "proof", nullptr), with(good, "proof", Json::array()),
        with(good, "proof", Json::array({other, other, other})), with(good, "proof", Json::array({""})),
        with(good, "proof", Json(std::vector<std::string>(1000, other)))}) {
    EXPECT_EQ(verdict(bad.dump()), 1) << bad.dump();
  }
  Json trailing = good;
  trailing["proof"].push_back(other);
  EXPECT_EQ(verdict(trailing.dump()), 1);
  trailing["proof"].back() = "";
  EXPECT_EQ(verdict(trailing.dump()), 1);
  const Json steps = consistency(3, 7);
  for (const Json& bad :
       {with(steps, "size1", 0), with(steps, "size1", 4), with(steps, "size1", 8), with(steps, "size2", 2),
        with(steps, "size2", huge), with(steps, "root1", other), with(steps, "root2", "AA=="),
        with(steps, "proof", nullptr), with(with(steps, "size1", 7), "proof", Json::array()),
        with(consistency(7, 7), "proof", Json::array({other})), with(consistency(7, 7), "root1", other)}) {
    EXPECT_EQ(verdict(bad.dump()), 1) << bad.dump();
  }
  // There is no proof from the empty tree, not even to itself (RFC 9162 §2.1.4.1: 0 < m).
  const std::string empty = base64_encode(ledger::empty_root());
  for (const int size : {0, 1}) {
    const Json from_nothing = {
        {"size1", 0}, {"size2", size}, {"root1", empty}, {"root2", empty}, {"proof", Json::array()}};
    EXPECT_EQ(verdict(from_nothing.dump()), 1);
  }
}

TEST(ProofFile, WhatIsNoProofIsMalformed) {
  const Json good = inclusion(2, 7);
  for (const char* key : {"leafIdx", "treeSize", "root", "leafHash", "proof"}) {
    Json lacking = good;
    lacking.erase(key);
    EXPECT_EQ(verdict(lacking.dump()), 2) << key;
    if (std::string(key) != "proof") {
      EXPECT_EQ(verdict(with(good, key, nullptr).dump()), 2) << key;
    }
    EXPECT_EQ(verdict(with(good, key, true).dump()), 2) << key;
    EXPECT_EQ(verdict(with(good, key, Json::object()).dump()), 2) << key;
  }
  for (const char* number :
       {"-1", "1.5", "2.0", "2e0", "18446744073709551616", "\"2\"", "-0", "1e400", "02", "0x2", "+2"}) {
    std::string text = good.dump();
    text.replace(text.find("\"leafIdx\":2") + 10, 1, number);
    EXPECT_EQ(verdict(text), 2) << text;
  }
  for (const Json& bad : {with(good, "root", "!"), with(good, "root", "AAA"), with(good, "root", "AAA=\n"),
                          with(good, "root", "AB=="), with(good, "root", 7), with(good, "proof", "AAAA"),
                          with(good, "proof", Json::array({7})), with(good, "proof", Json::array({nullptr})),
                          with(good, "size1", 3)}) {
    EXPECT_EQ(verdict(bad.dump()), 2) << bad.dump();
  }
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("{}"), std::string("[]"), std::string("null"),
        std::string("7"), std::string("{\"proof\":[]}"), good.dump() + "x",
        good.dump() + std::string("\0x", 2), good.dump() + good.dump(), std::string("\xff"),
        std::string(100000, '['), "{\"leafIdx\":1," + good.dump().substr(1)}) {
    EXPECT_EQ(verdict(text), 2) << text.substr(0, 60);
  }
}

}  // namespace
}  // namespace fieldprint::cli
