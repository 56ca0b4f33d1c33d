#include "ledger/merkle.h"

#include <gtest/gtest.h>

#include <string>

namespace fieldprint::ledger {
namespace {

using Bytes = std::vector<std::uint8_t>;

Digest digest(std::string_view hex) {
  Digest out{};
  EXPECT_TRUE(from_hex(hex, out));
  return out;
}

std::vector<Digest> digests(std::initializer_list<std::string_view> hex) {
  std::vector<Digest> out;
  for (const auto text : hex) out.push_back(digest(text));
  return out;
}

// The test tree of the certificate-transparency project, used by every RFC 6962 implementation.
std::vector<Digest> reference_leaf_hashes() {
  std::vector<Digest> hashes;
  for (const std::string_view hex :
       {"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}) {
    Bytes leaf(hex.size() / 2);
    EXPECT_TRUE(from_hex(hex, leaf));
    hashes.push_back(leaf_hash(leaf));
  }
  return hashes;
}

constexpr std::string_view kRoots[] = {
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
};

std::vector<Digest> many_leaf_hashes(std::size_t count) {
  std::vector<Digest> hashes;
  for (std::size_t i = 0; i < count; ++i) {
    hashes.push_back(leaf_hash(Bytes{static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(i >> 8)}));
  }
  return hashes;
}

// Reads nodes by the recursive definition, independent of CompactTree.
NodeReader reader(const std::vector<Digest>& leaves) {
  return [&leaves](NodeId id) -> Result<Digest> {
    const auto hash = [&](auto&& self, std::uint64_t begin, std::uint64_t count) -> Digest {
      if (count == 1) return leaves.at(begin);
      return node_hash(self(self, begin, count / 2), self(self, begin + count / 2, count / 2));
    };
    return hash(hash, id.index << id.level, std::uint64_t{1} << id.level);
  };
}

TEST(Merkle, RootsMatchTheReferenceTree) {
  const auto leaves = reference_leaf_hashes();
  CompactTree tree;
  for (std::size_t size = 0; size <= leaves.size(); ++size) {
    EXPECT_EQ(to_hex(root_of(std::span(leaves).first(size))), kRoots[size]);
    EXPECT_EQ(to_hex(*root_at(size, reader(leaves))), kRoots[size]);
    EXPECT_EQ(to_hex(tree.root()), kRoots[size]);
    if (size < leaves.size()) tree.append(leaves[size]);
  }
}

TEST(Merkle, InclusionProofsMatchTheReferenceTree) {
  const auto leaves = reference_leaf_hashes();
  const struct {
    std::uint64_t index, size;
    std::vector<Digest> proof;
  } vectors[] = {
      {0, 1, {}},
      {0, 8,
       digests({"96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"})},
      {5, 8,
       digests({"bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"})},
      {2, 3, digests({"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"})},
      {1, 5,
       digests({"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"})},
  };
  for (const auto& v : vectors) {
    EXPECT_EQ(*inclusion_proof(v.index, v.size, reader(leaves)), v.proof) << v.index << "/" << v.size;
    EXPECT_TRUE(verify_inclusion(leaves[v.index], v.index, v.size, v.proof, digest(kRoots[v.size])).ok());
  }
}

TEST(Merkle, ConsistencyProofsMatchTheReferenceTree) {
  const auto leaves = reference_leaf_hashes();
  const struct {
    std::uint64_t old_size, new_size;
    std::vector<Digest> proof;
  } vectors[] = {
      {1, 1, {}},
      {1, 8,
       digests({"96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"})},
      {6, 8,
       digests({"0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"})},
      {2, 5,
       digests({"5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"})},
  };
  for (const auto& v : vectors) {
    EXPECT_EQ(*consistency_proof(v.old_size, v.new_size, reader(leaves)), v.proof);
    EXPECT_TRUE(verify_consistency(v.old_size, digest(kRoots[v.old_size]), v.new_size,
                                   digest(kRoots[v.new_size]), v.proof)
                    .ok());
  }
}

TEST(Merkle, ACompactTreeHandsOutEveryPerfectSubtreeOnceAndCanBeTakenUpAgain) {
  const auto leaves = many_leaf_hashes(70);
  const NodeReader by_definition = reader(leaves);
  std::vector<std::pair<NodeId, Digest>> nodes;
  CompactTree tree;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    auto loaded = CompactTree::load(i, by_definition);
    ASSERT_TRUE(loaded.ok());
    EXPECT_EQ(loaded->root(), tree.root());
    tree.append(leaves[i], [&](NodeId id, const Digest& hash) { nodes.emplace_back(id, hash); });
  }
  EXPECT_EQ(nodes.size(), 70u + 35 + 17 + 8 + 4 + 2 + 1);
  for (const auto& [id, hash] : nodes) EXPECT_EQ(hash, *by_definition(id)) << id.level << ":" << id.index;
}

TEST(Merkle, EveryInclusionProofVerifiesAndNoAlterationDoes) {
  const auto leaves = many_leaf_hashes(41);
  for (std::uint64_t size = 1; size <= leaves.size(); ++size) {
    const Digest root = root_of(std::span(leaves).first(size));
    for (std::uint64_t index = 0; index < size; ++index) {
      auto proof = *inclusion_proof(index, size, reader(leaves));
      ASSERT_TRUE(verify_inclusion(leaves[index], index, size, proof, root).ok()) << index << "/" << size;
      for (std::uint64_t other = 0; other <= size + 1; ++other) {
        if (other != index) {
          EXPECT_FALSE(verify_inclusion(leaves[index], other, size, proof, root).ok());
        }
      }
      Digest wrong = leaves[index];
      wrong[31] ^= 1;
      EXPECT_FALSE(verify_inclusion(wrong, index, size, proof, root).ok());
      for (auto& hash : proof) {
        hash[0] ^= 0x80;
        EXPECT_FALSE(verify_inclusion(leaves[index], index, size, proof, root).ok());
        hash[0] ^= 0x80;
      }
      auto longer = proof;
      longer.push_back(root);
      EXPECT_FALSE(verify_inclusion(leaves[index], index, size, longer, root).ok());
      if (!proof.empty()) {
        proof.pop_back();
        EXPECT_FALSE(verify_inclusion(leaves[index], index, size, proof, root).ok());
      }
    }
  }
}

TEST(Merkle, EveryConsistencyProofVerifiesAndNoAlterationDoes) {
  const auto leaves = many_leaf_hashes(41);
  std::vector<Digest> roots;
  for (std::size_t size = 0; size <= leaves.size(); ++size)
    roots.push_back(root_of(std::span(leaves).first(size)));
  for (std::uint64_t from = 1; from < roots.size(); ++from) {
    for (std::uint64_t to = from; to < roots.size(); ++to) {
      auto proof = *consistency_proof(from, to, reader(leaves));
      ASSERT_TRUE(verify_consistency(from, roots[from], to, roots[to], proof).ok()) << from << "→" << to;
      Digest wrong = roots[from];
      wrong[7] ^= 4;
      EXPECT_FALSE(verify_consistency(from, wrong, to, roots[to], proof).ok());
      for (auto& hash : proof) {
        hash[31] ^= 1;
        EXPECT_FALSE(verify_consistency(from, roots[from], to, roots[to], proof).ok());
        hash[31] ^= 1;
      }
      auto longer = proof;
      longer.push_back(roots[to]);
      EXPECT_FALSE(verify_consistency(from, roots[from], to, roots[to], longer).ok());
      if (!proof.empty()) {
        proof.pop_back();
        EXPECT_FALSE(verify_consistency(from, roots[from], to, roots[to], proof).ok());
      }
    }
  }
}

TEST(Merkle, RefusesSizesAndIndexesOutOfRange) {
  const auto leaves = many_leaf_hashes(4);
  EXPECT_EQ(inclusion_proof(0, 0, reader(leaves)).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(inclusion_proof(4, 4, reader(leaves)).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(consistency_proof(4, 3, reader(leaves)).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(verify_inclusion(leaves[0], 0, 0, {}, empty_root()).error().kind, ErrorKind::kRefuted);
  EXPECT_FALSE(verify_consistency(5, leaves[0], 4, leaves[0], {}).ok());
  EXPECT_FALSE(verify_consistency(4, leaves[0], 4, leaves[1], {}).ok());
  // RFC 9162 has no proof from the empty tree, whatever its root is said to be.
  EXPECT_EQ(consistency_proof(0, 3, reader(leaves)).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(verify_consistency(0, empty_root(), 4, leaves[1], {}).error().kind, ErrorKind::kRefuted);
  EXPECT_FALSE(verify_consistency(0, empty_root(), 0, empty_root(), {}).ok());
  const std::vector<Digest> extra = {leaves[0]};
  EXPECT_FALSE(verify_consistency(0, empty_root(), 4, leaves[1], extra).ok());
}

TEST(Merkle, TheLargestSizesDoNotOverflow) {
  const Digest leaf = leaf_hash(Bytes{1});
  const std::vector<Digest> proof(64, leaf);
  EXPECT_FALSE(verify_inclusion(leaf, ~std::uint64_t{0} - 1, ~std::uint64_t{0}, proof, leaf).ok());
  EXPECT_FALSE(verify_consistency(~std::uint64_t{0} - 1, leaf, ~std::uint64_t{0}, leaf, proof).ok());
  const NodeReader constant = [&](NodeId) -> Result<Digest> { return leaf; };
  const std::uint64_t size = ~std::uint64_t{0};
  auto long_proof = inclusion_proof(size - 1, size, constant);
  ASSERT_TRUE(long_proof.ok());
  EXPECT_EQ(long_proof->size(), 63u);
  EXPECT_TRUE(verify_inclusion(leaf, size - 1, size, *long_proof, *root_at(size, constant)).ok());
}

TEST(Merkle, AFailingNodeReaderFailsTheProof) {
  const NodeReader broken = [](NodeId) -> Result<Digest> { return environment_error("no disk"); };
  EXPECT_EQ(inclusion_proof(2, 7, broken).error().message, "no disk");
  EXPECT_EQ(consistency_proof(3, 7, broken).error().message, "no disk");
  EXPECT_EQ(root_at(7, broken).error().message, "no disk");
  EXPECT_EQ(CompactTree::load(7, broken).error().message, "no disk");
}

}  // namespace
}  // namespace fieldprint::ledger
