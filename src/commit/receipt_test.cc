#include "commit/receipt.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <nlohmann/json.hpp>

#include "cbor/cbor.h"
#include "commit/envelope.h"
#include "commit/receipt_sample.h"

namespace fieldprint::commit {
namespace {

using cbor::CborReader;
using cbor::CborWriter;

Bytes encoded(const Receipt& receipt) {
  auto bytes = encode(receipt);
  EXPECT_TRUE(bytes.ok()) << bytes.error().message;
  return *bytes;
}

std::string refusal(const Bytes& bytes) {
  auto receipt = decode(bytes);
  return receipt.ok() ? "(accepted)" : receipt.error().message;
}

TEST(Receipt, RoundTripsForManySeeds) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const Receipt receipt = sample::receipt(seed, seed % 130);
    const Bytes bytes = encoded(receipt);
    auto decoded = decode(bytes);
    ASSERT_TRUE(decoded.ok()) << decoded.error().message;
    EXPECT_EQ(*decoded, receipt);
    EXPECT_EQ(encoded(*decoded), bytes);
  }
}

TEST(Receipt, RoundTripsTheEdgesOfEveryRange) {
  Receipt receipt = sample::receipt(1);
  Body& body = receipt.body;
  body.anchors.clear();
  body.sink_tokens = {0, 127, 128, 16383, 16384, (1 << 20) - 1};
  body.stop.clear();
  body.output_tokens.clear();
  body.kv_blocks.clear();
  body.anchor_mass = {0.0f, -0.0f, 1.0f, 0x1p-149f, std::nextafter(1.0f, 0.0f)};
  body.sampling = {0x1p-149f, 1 << 20, 0x1p-149f, 1, std::numeric_limits<float>::max(), ~std::uint64_t{0}};
  receipt.leaf_index = ~std::uint64_t{0};
  auto decoded = decode(encoded(receipt));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(*decoded, receipt);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(decoded->body.anchor_mass[1]), 0x80000000u);
}

TEST(Receipt, TheLeafIsTheBodyAsItStandsInTheReceipt) {
  const Receipt receipt = sample::receipt(3);
  const Bytes whole = encoded(receipt);
  const Bytes leaf = *encode_body(receipt.body);
  EXPECT_NE(std::search(whole.begin(), whole.end(), leaf.begin(), leaf.end()), whole.end());
  EXPECT_EQ(*commit_digest(receipt.body), ledger::leaf_hash(leaf));
}

TEST(Receipt, ABodyTooLongForALeafStandsThereByItsDigest) {
  EXPECT_EQ(leaf_of(Bytes(65535, 1)), Bytes(65535, 1));
  const Bytes body(65536, 1);
  const Bytes leaf = leaf_of(body);
  CborReader reader(leaf);
  EXPECT_EQ(*reader.map(), 2u);
  EXPECT_EQ(*reader.text(), "body_bytes");
  EXPECT_EQ(*reader.unsigned_integer(), 65536u);
  EXPECT_EQ(*reader.text(), "body_digest");
  const auto digest = *reader.byte_string();
  EXPECT_TRUE(std::equal(digest.begin(), digest.end(), sha256(body).begin()));
  EXPECT_TRUE(reader.at_end());

  const Receipt receipt = sample::receipt(3, 40000);
  ASSERT_GT(encode_body(receipt.body)->size(), 65536u);
  for (const Check& check : check_envelope(receipt))
    EXPECT_TRUE(check.ok) << check.name << ": " << check.detail;
}

TEST(Receipt, OutputDigestIsOverLittleEndianIds) {
  EXPECT_EQ(digest_of({1, 0x20304}), sha256(Bytes{1, 0, 0, 0, 4, 3, 2, 0}));
  EXPECT_EQ(digest_of({}), sha256(Bytes{}));
}

TEST(Receipt, ThirtyTwoMoreTokensAddAtMost258BytesBesideTheTokens) {
  const auto beside_tokens = [](std::size_t output_tokens) {
    const Receipt receipt = sample::receipt(7, output_tokens);
    std::size_t bytes = encoded(receipt).size();
    for (const auto id : receipt.body.output_tokens) bytes -= id < 128 ? 1 : id < 16384 ? 2 : 3;
    return bytes;
  };
  const std::size_t grown = beside_tokens(64 + 1024) - beside_tokens(64);
  EXPECT_LE(grown / 32, 258u);
  EXPECT_LE(grown / 32, 24u) << "one block digest for 64 tokens is all that should grow";
}

TEST(Receipt, RefusesEveryPrefixAndEveryExtension) {
  Bytes bytes = encoded(sample::receipt(2, 4));
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(decode(std::span(bytes).first(size)).ok());
  }
  bytes.push_back(0);
  EXPECT_NE(refusal(bytes).find("followed by further bytes"), std::string::npos);
}

// Replaces the first occurrence of `from` by `to`.
Bytes replaced(Bytes bytes, const Bytes& from, const Bytes& to) {
  const auto at = std::search(bytes.begin(), bytes.end(), from.begin(), from.end());
  EXPECT_NE(at, bytes.end());
  Bytes out(bytes.begin(), at);
  out.insert(out.end(), to.begin(), to.end());
  out.insert(out.end(), at + static_cast<std::ptrdiff_t>(from.size()), bytes.end());
  return out;
}

Bytes key_and(std::string_view key, std::initializer_list<std::uint8_t> value) {
  CborWriter writer;
  writer.text(key);
  writer.append(Bytes(value));
  return writer.take();
}

TEST(Receipt, RefusesOtherEncodingsOfTheSameValues) {
  const Bytes good = encoded(sample::receipt(2));
  const std::initializer_list<std::uint8_t> longer_numbers[] = {
      {0x18, 5}, {0x19, 0, 5}, {0x1b, 0, 0, 0, 0, 0, 0, 0, 5}};
  for (const auto& longer : longer_numbers) {
    const Bytes bytes = replaced(good, key_and("leaf_index", {5}), key_and("leaf_index", longer));
    EXPECT_NE(refusal(bytes).find("not in deterministic CBOR"), std::string::npos) << refusal(bytes);
  }
  // 1.0 as binary32, a token id with a needless byte, a text key with a longer head.
  EXPECT_NE(refusal(replaced(good, key_and("ceiling", {0xf9, 0x3c, 0}),
                             key_and("ceiling", {0xfa, 0x3f, 0x80, 0, 0})))
                .find("not in deterministic CBOR"),
            std::string::npos);
  EXPECT_NE(
      refusal(replaced(good, key_and("sink_tokens", {0x41, 1}), key_and("sink_tokens", {0x42, 0x81, 0})))
          .find("not in deterministic CBOR"),
      std::string::npos);
  EXPECT_NE(refusal(replaced(good, {0x64, 's', 't', 'o', 'p'}, {0x78, 4, 's', 't', 'o', 'p'}))
                .find("not in deterministic CBOR"),
            std::string::npos);
}

TEST(Receipt, RefusesUnknownMissingRepeatedAndReorderedFields) {
  const Bytes good = encoded(sample::receipt(2));
  const auto key = [](std::string_view name) { return key_and(name, {}); };
  EXPECT_NE(refusal(replaced(good, key("top_p"), key("top_q")))
                .find("receipt field sampling: expected field top_p"),
            std::string::npos);
  EXPECT_NE(refusal(replaced(good, key("stop"), key("seed"))).find("found field seed"), std::string::npos);
  EXPECT_NE(refusal(replaced(good, key_and("top_k", {}), key_and("min_p", {}))).find("found field min_p"),
            std::string::npos);
  // The outermost map holds seven fields.
  ASSERT_EQ(good[0], 0xa7);
  Bytes fewer = good;
  fewer[0] = 0xa6;
  EXPECT_FALSE(decode(fewer).ok());
  Bytes more = good;
  more[0] = 0xa8;
  const Bytes extra = key_and("zzzzzzzzzzzzzzzzzzz", {0});
  more.insert(more.end(), extra.begin(), extra.end());
  EXPECT_NE(refusal(more).find("expected no more fields"), std::string::npos) << refusal(more);
}

TEST(Receipt, RefusesWrongTypesAndNamesTheField) {
  const Bytes good = encoded(sample::receipt(2));
  EXPECT_EQ(refusal(replaced(good, key_and("leaf_index", {5}), key_and("leaf_index", {0x20}))),
            "receipt field leaf_index: expected an unsigned integer, found a negative integer");
  EXPECT_EQ(refusal(replaced(good, key_and("sink_tokens", {0x41, 1}), key_and("sink_tokens", {0x61, 'a'}))),
            "receipt field sink_tokens: expected a byte string, found a text string");
  EXPECT_EQ(refusal(replaced(good, key_and("sink_tokens", {0x41, 1}), key_and("sink_tokens", {0x41, 0x81}))),
            "receipt field sink_tokens: the last token id is cut off");
  EXPECT_EQ(refusal(Bytes{0x80}), "receipt field (receipt): expected a map, found an array");
}

TEST(Receipt, ReceiptsOfOtherVersionsAreCalledThatAndNotMalformed) {
  const Bytes good = encoded(sample::receipt(2));
  EXPECT_EQ(
      refusal(replaced(good, key_and("version", {2}), key_and("version", {3}))),
      "receipt field version: made by a later version of fieldprint, which writes receipts of version 3; "
      "this program reads version 2");
  // Version 1 had neither inputs nor anchors_at.
  Bytes first = replaced(good, key_and("version", {2}), key_and("version", {1}));
  first = replaced(first, key_and("anchors_at", {}), key_and("anchors_ut", {}));
  EXPECT_EQ(
      refusal(first),
      "receipt field version: made by an earlier version of fieldprint, which writes receipts of version "
      "1; this program reads version 2");
}

TEST(Receipt, ValuesOutOfRangeAreRefusedByNameWhenWritten) {
  const auto named = [](auto&& alter) -> std::string {
    Receipt receipt = sample::receipt(4);
    alter(receipt);
    auto bytes = encode(receipt);
    if (bytes.ok()) return "(accepted)";
    EXPECT_EQ(bytes.error().kind, ErrorKind::kCaller);
    const std::string& message = bytes.error().message;
    return message.substr(14, message.find(':') - 14);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(named([&](Receipt& r) { r.body.anchor_mass[3] = nan; }), "anchor_mass[3]");
  EXPECT_EQ(named([&](Receipt& r) { r.body.sampling.temperature = nan; }), "sampling.temperature");
  EXPECT_EQ(named([&](Receipt& r) { r.body.sampling.min_p = -infinity; }), "sampling.min_p");
  EXPECT_EQ(named([&](Receipt& r) { r.body.anchor_bounds.ceiling = infinity; }), "anchor_bounds.ceiling");
  EXPECT_EQ(named([&](Receipt& r) { r.body.stop[1] = "\xff"; }), "stop[1]");
  EXPECT_EQ(named([&](Receipt& r) { r.body.stop.resize(17); }), "stop");
  EXPECT_EQ(named([&](Receipt& r) { r.body.output_tokens[0] = -1; }), "output_tokens");
  EXPECT_EQ(named([&](Receipt& r) { r.body.context_tokens[0] = 1 << 20; }), "context_tokens");
  EXPECT_EQ(named([&](Receipt& r) { r.body.kv_blocks[1].tokens = 65; }), "kv_blocks[1].tokens");
  EXPECT_EQ(named([&](Receipt& r) { r.body.kv_blocks[1].index = -1; }), "kv_blocks[1].index");
  EXPECT_EQ(named([&](Receipt& r) { r.body.anchors.resize(65); }), "anchors");
  EXPECT_EQ(named([&](Receipt& r) { r.body.inputs[0].kind = "rumour"; }), "inputs[0].kind");
  EXPECT_EQ(named([&](Receipt& r) { r.body.inputs.resize(1025, r.body.inputs[0]); }), "inputs");
  EXPECT_EQ(named([&](Receipt& r) { r.inclusion_proof.resize(65); }), "inclusion_proof");
  EXPECT_EQ(named([&](Receipt& r) { r.checkpoint = "\xc0"; }), "checkpoint");
}

TEST(Receipt, SettingsOutOfRangeCanBeReadButNeitherRecordedNorSealed) {
  const auto named = [](auto&& alter) {
    Receipt receipt = sample::receipt(4);
    alter(receipt.body);
    const Bytes bytes = encoded(receipt);
    const auto again = decode(bytes);
    EXPECT_TRUE(again.ok() && encoded(*again) == bytes && to_json(*again).ok());
    const auto leaf = encode_body(receipt.body);
    const Status sealed = seal(receipt);
    if (leaf.ok() || sealed.ok()) return std::string("(accepted)");
    EXPECT_EQ(leaf.error().kind, ErrorKind::kCaller);
    EXPECT_EQ(leaf.error().message, sealed.error().message);
    for (const Check& check : check_envelope(receipt)) {
      if (leaf.error().message != fmt::format("receipt field {}: {}", check.name, check.detail)) continue;
      EXPECT_FALSE(check.ok);
      return check.name;
    }
    return std::string("(not checked)");
  };
  EXPECT_EQ(named([&](Body& b) { b.sampling.temperature = 1e-39f; }), "sampling.temperature");
  EXPECT_EQ(named([&](Body& b) { b.sampling.top_p = 0; }), "sampling.top_p");
  EXPECT_EQ(named([&](Body& b) { b.sampling.min_p = -1; }), "sampling.min_p");
  EXPECT_EQ(named([&](Body& b) { b.sampling.top_k = -1; }), "sampling.top_k");
  EXPECT_EQ(named([&](Body& b) { b.sampling.repetition_penalty = 1e-38f; }), "sampling.repetition_penalty");
  EXPECT_EQ(named([&](Body& b) { b.anchor_bounds.floor = 1; }), "anchor_bounds.floor");
  EXPECT_EQ(named([&](Body& b) { b.anchor_bounds = {0.5f, 0.25f}; }), "anchor_bounds.floor");
  EXPECT_EQ(named([&](Body& b) { b.anchor_bounds.ceiling = 2; }), "anchor_bounds.ceiling");
  EXPECT_EQ(named([&](Body& b) { b.max_tokens = -1; }), "max_tokens");
  EXPECT_EQ(named([&](Body& b) { b.stop[1].clear(); }), "stop[1]");
}

TEST(Receipt, TheJsonViewShowsDigestsInHexAndFloatsWithTheirBits) {
  const Receipt receipt = sample::receipt(5);
  auto text = to_json(receipt);
  ASSERT_TRUE(text.ok());
  const auto json = nlohmann::json::parse(*text);
  EXPECT_EQ(json["body"]["model_digest"], to_hex(receipt.body.model_digest));
  EXPECT_EQ(json["body"]["sampling"]["temperature"]["bits"], "0x3f4ccccd");
  EXPECT_EQ(json["body"]["sampling"]["seed"], receipt.body.sampling.seed);
  EXPECT_EQ(json["body"]["output_tokens"], receipt.body.output_tokens);
  EXPECT_EQ(json["body"]["kv_blocks"][0]["segment"], "sink");
  EXPECT_EQ(json["body"]["finish_reason"], "length");
  EXPECT_EQ(json["body"]["anchors_at"], receipt.body.anchors_at);
  EXPECT_EQ(json["body"]["inputs"][1]["kind"], "memory");
  EXPECT_EQ(json["body"]["inputs"][1]["digest"], to_hex(receipt.body.inputs[1].digest));
  EXPECT_EQ(json["checkpoint"], receipt.checkpoint);
}

}  // namespace
}  // namespace fieldprint::commit
