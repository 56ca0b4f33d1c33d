#include "anchor/terms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "anchor/anchor.h"
#include "base/bounds.h"
#include "base/utc_time.h"

namespace fieldprint::anchor {
namespace {

Digest digest(std::uint8_t first) { return {first, 0xab}; }

Terms full_terms() {
  Terms terms;
  terms.tenants = {"acme", "beta"};
  terms.models = {digest(1), digest(2)};
  terms.floor = 0.1F;
  terms.ceiling = 0.75F;
  terms.not_before = parse_utc("2026-01-01T00:00:00Z");
  terms.not_after = parse_utc("2026-12-31T23:59:59Z");
  terms.supersedes = {digest(3)};
  return terms;
}

Anchor anchor_of(const Terms& terms) { return *Anchor::make(AnchorType::kPolicy, "n", "text", terms); }

std::string canonical(const Anchor& anchor) {
  const auto bytes = anchor.canonical_bytes();
  return {bytes.begin(), bytes.end()};
}

bool parses(const std::string& head) {
  const std::string text = "fieldprint-anchor 1\ntype policy\nname n\n" + head + "\ntext";
  return Anchor::parse(std::vector<std::uint8_t>(text.begin(), text.end())).ok();
}

std::string hex(std::uint8_t first) { return to_hex(digest(first)); }

TEST(Terms, StandInTheHeadInTheDocumentedOrder) {
  EXPECT_EQ(canonical(anchor_of(full_terms())),
            "fieldprint-anchor 1\ntype policy\nname n\ntenant acme\ntenant beta\nmodel " + hex(1) +
                "\nmodel " + hex(2) +
                "\nfloor 0.1\nceiling 0.75\nnot-before 2026-01-01T00:00:00Z\nnot-after "
                "2026-12-31T23:59:59Z\nsupersedes " +
                hex(3) + "\n\ntext");
}

TEST(Terms, AnAnchorWithoutThemKeepsItsBytes) {
  EXPECT_EQ(canonical(anchor_of({})), "fieldprint-anchor 1\ntype policy\nname n\n\ntext");
}

TEST(Terms, AllOfThemBelongToTheIdentity) {
  std::set<Digest> ids = {anchor_of(full_terms()).id(), anchor_of({}).id()};
  const std::vector<std::function<void(Terms&)>> changes = {
      [](Terms& t) { t.tenants.pop_back(); },
      [](Terms& t) { t.models.pop_back(); },
      [](Terms& t) { t.floor = std::nextafter(t.floor, 1.0F); },
      [](Terms& t) { t.ceiling = 1; },
      [](Terms& t) { ++*t.not_before; },
      [](Terms& t) { t.not_after.reset(); },
      [](Terms& t) { t.supersedes.clear(); }};
  for (const auto& change : changes) {
    Terms terms = full_terms();
    change(terms);
    EXPECT_TRUE(ids.insert(anchor_of(terms).id()).second);
  }
}

TEST(Terms, TheOrderInWhichListsAreGivenDoesNotMatter) {
  Terms shuffled = full_terms();
  shuffled.tenants = {"beta", "acme", "beta"};
  shuffled.models = {digest(2), digest(1)};
  EXPECT_EQ(anchor_of(shuffled), anchor_of(full_terms()));
}

TEST(Terms, ParseIsTheInverseForManyShares) {
  std::uint32_t state = 1;
  for (int i = 0; i < 2000; ++i) {
    state = state * 1664525u + 1013904223u;
    Terms terms;
    terms.floor = static_cast<float>(state) * 0x1p-32F * 0.5F;
    terms.ceiling = 1 - static_cast<float>(state >> 8) * 0x1p-25F;
    const Anchor anchor = anchor_of(terms);
    auto parsed = Anchor::parse(anchor.canonical_bytes());
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    ASSERT_EQ(*parsed, anchor);
    ASSERT_EQ(parsed->terms().floor, terms.floor);
  }
  EXPECT_EQ(*Anchor::parse(anchor_of(full_terms()).canonical_bytes()), anchor_of(full_terms()));
}

TEST(Terms, LinesThatAreNotCanonicalAreRefused) {
  EXPECT_TRUE(parses("tenant a\ntenant b\n"));
  EXPECT_TRUE(parses("floor 0.5\nceiling 0.5\n"));
  for (const std::string& head :
       {std::string("tenant b\ntenant a\n"),
        std::string("tenant a\ntenant a\n"),
        std::string("tenant \n"),
        std::string("tenant a\tb\n"),
        "model " + hex(2) + "\nmodel " + hex(1) + "\n",
        std::string("model 12\n"),
        "model AB" + hex(2).substr(2) + "\n",
        std::string("floor 0\n"),
        std::string("floor 0.50\n"),
        std::string("floor .5\n"),
        std::string("floor 5e-1\n"),
        std::string("floor -0\n"),
        std::string("floor 1\n"),
        std::string("floor nan\n"),
        std::string("floor 0.6\nceiling 0.5\n"),
        std::string("ceiling 1\n"),
        std::string("ceiling 1.5\n"),
        std::string("ceiling 0.5\nfloor 0.1\n"),
        std::string("not-before 2026-01-01\n"),
        std::string("not-before 2026-01-02T00:00:00Z\nnot-after 2026-01-01T00:00:00Z\n"),
        std::string("not-after 2026-01-01T00:00:00Z\nnot-after 2026-01-02T00:00:00Z\n"),
        "supersedes " + hex(3) + "\ntenant a\n",
        std::string("colour blue\n")}) {
    EXPECT_FALSE(parses(head)) << head;
  }
}

TEST(Terms, WhatContradictsItselfIsNoAnchor) {
  const auto refused = [](const std::function<void(Terms&)>& change) {
    Terms terms;
    change(terms);
    return !Anchor::make(AnchorType::kPolicy, {}, "x", terms).ok();
  };
  EXPECT_TRUE(refused([](Terms& t) { t.floor = 1; }));
  EXPECT_TRUE(refused([](Terms& t) { t.floor = -0.1F; }));
  EXPECT_TRUE(refused([](Terms& t) { t.floor = std::numeric_limits<float>::quiet_NaN(); }));
  EXPECT_TRUE(refused([](Terms& t) { t.ceiling = std::numeric_limits<float>::quiet_NaN(); }));
  EXPECT_TRUE(refused([](Terms& t) { t.floor = 0.5F, t.ceiling = 0.4F; }));
  EXPECT_TRUE(refused([](Terms& t) { t.tenants = {""}; }));
  EXPECT_TRUE(refused([](Terms& t) { t.tenants = {"a\nmodel x"}; }));
  EXPECT_TRUE(refused([](Terms& t) { t.tenants = {std::string(257, 'x')}; }));
  EXPECT_TRUE(refused([](Terms& t) { t.not_before = 2, t.not_after = 1; }));
  EXPECT_TRUE(refused([](Terms& t) { t.not_after = kLastUtcSecond + 1; }));
  EXPECT_TRUE(refused([](Terms& t) {
    for (int i = 0; i <= bounds::kMaxAnchorListed; ++i) t.tenants.push_back(std::to_string(i));
  }));
  EXPECT_FALSE(refused([](Terms& t) { t.floor = -0.0F; }));
}

TEST(Terms, TextAndTermsTogetherFitIntoALeaf) {
  Terms terms;
  for (int i = 0; i < bounds::kMaxAnchorListed; ++i)
    terms.tenants.push_back(std::to_string(i) + std::string(250, 't'));
  const std::string text(bounds::kMaxAnchorBytes, 'x');
  EXPECT_FALSE(Anchor::make(AnchorType::kPolicy, {}, text, terms).ok());
  EXPECT_TRUE(Anchor::make(AnchorType::kPolicy, {}, text).ok());
}

TEST(AnchorSet, TakesTheTightestBounds) {
  Terms weak;
  weak.floor = 0.1F;
  weak.ceiling = 0.9F;
  Terms strong;
  strong.floor = 0.2F;
  strong.ceiling = 0.8F;
  auto set = AnchorSet::make({*Anchor::make(AnchorType::kPolicy, {}, "a", weak),
                              *Anchor::make(AnchorType::kPolicy, {}, "b", strong)});
  ASSERT_TRUE(set.ok());
  EXPECT_EQ(*set->bounds({}), (core::AnchorBounds{0.2F, 0.8F}));
  EXPECT_EQ(*set->bounds({.floor = 0.3F, .ceiling = 0.7F}), (core::AnchorBounds{0.3F, 0.7F}));
  // A request cannot loosen what its anchors ask for.
  EXPECT_EQ(*set->bounds({.floor = 0.05F, .ceiling = 0.95F}), (core::AnchorBounds{0.2F, 0.8F}));
  EXPECT_EQ(set->bounds({.floor = 0.85F, .ceiling = 1}).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(*AnchorSet().bounds({.floor = 0.3F, .ceiling = 0.7F}), (core::AnchorBounds{0.3F, 0.7F}));
}

}  // namespace
}  // namespace fieldprint::anchor
