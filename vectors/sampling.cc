#include <fmt/format.h>

#include <numeric>
#include <vector>

#include "exact/arith.h"
#include "kv/block_digest.h"
#include "kv/block_key.h"
#include "sampler/sampler.h"
#include "vectors/device.h"
#include "vectors/golden.h"
#include "vectors/source.h"

/// Probabilities and picks; pages, block digests and block keys.
namespace fieldprint::vectors {
namespace {

using backend::Backend;

constexpr std::int32_t kVocab = 1000;

/// One row of logits on the device, as the sampler wants it.
class DeviceLogits {
 public:
  DeviceLogits(Backend& backend, std::vector<float> logits)
      : backend_(backend),
        host_(std::move(logits)),
        logits_(backend, host_),
        scale_(backend, std::size_t{1}),
        p_(backend, host_.size()),
        token_(backend, std::size_t{1}) {}

  sampler::LogitRow row() {
    return {host_,
            [this](float scale) {
              backend_.upload(scale_.data(), &scale, sizeof scale);
              backend_.probabilities(
                  {logits_.data(), static_cast<std::int32_t>(host_.size()), scale_.data(), p_.data()}, 1);
              probabilities_ = p_.host();
              return std::span<const std::int32_t>(probabilities_);
            },
            [this](std::span<const float> other) {
              backend_.upload(logits_.data(), other.data(), static_cast<std::int64_t>(other.size() * 4));
            }};
  }

  /// The token that the backend chooses.
  std::int32_t chosen(const SamplingSettings& settings, std::span<const std::int32_t> history) {
    sampler::SeenTokens seen(kVocab);
    seen.add(history);
    const Device<exact::TokenChoice> choice(backend_,
                                            std::vector{sampler::choice_of(settings, history.size())});
    const Device<std::uint32_t> words(backend_, std::vector(seen.words().begin(), seen.words().end()));
    backend_.choose({logits_.data(), kVocab, choice.data(), words.data(), token_.data()}, 1);
    return token_.host()[0];
  }

 private:
  Backend& backend_;
  std::vector<float> host_;
  Device<float> logits_;
  Device<float> scale_;
  Device<std::int32_t> p_;
  Device<std::int32_t> token_;
  std::vector<std::int32_t> probabilities_;
};

void record_probabilities(Backend& backend, Recorder& out) {
  constexpr std::int32_t kRows = 3;
  Source source(40);
  std::vector<float> logits = floats(kRows * kVocab, 15.0F, source);
  logits[5] = -std::numeric_limits<float>::infinity();
  logits[kVocab + 7] = -exact::kMaxFloat;
  logits[2 * kVocab + 9] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scale = {exact::kLog2E, exact::kLog2E / 0.7F, exact::kLog2E / 0.001F};
  const Device<float> device_logits(backend, logits);
  const Device<float> device_scale(backend, scale);
  const Device<std::int32_t> p(backend, std::size_t{kRows * kVocab});
  backend.probabilities({device_logits.data(), kVocab, device_scale.data(), p.data()}, kRows);
  out.inputs(
      "seed 40, 3 rows of 1000 in (-15, 15), temperatures 1, 0.7, 0.001; -inf at 5 of the first row, the "
      "least float at 7 of the second, NaN at 9 of the third");
  out.add("probabilities", p.host());
}

void record_picks(Backend& backend, Recorder& out) {
  struct Case {
    const char* name;
    SamplingSettings settings;
  };
  const Case cases[] = {{"greedy", {}},
                        {"greedy.penalty", {.repetition_penalty = 1.3F}},
                        {"plain", {.temperature = 1.0F, .seed = 7}},
                        {"cold", {.temperature = 0.05F, .seed = 8}},
                        {"top_k", {.temperature = 1.5F, .top_k = 10, .seed = 9}},
                        {"top_p", {.temperature = 1.0F, .top_p = 0.9F, .seed = 10}},
                        {"top_p.flat", {.temperature = 50.0F, .top_p = 0.8F, .seed = 11}},
                        {"min_p", {.temperature = 2.0F, .min_p = 0.05F, .seed = 12}},
                        {"all",
                         {.temperature = 0.8F,
                          .top_k = 100,
                          .top_p = 0.95F,
                          .min_p = 0.01F,
                          .repetition_penalty = 1.1F,
                          .seed = 13}}};
  constexpr int kPicks = 200;
  for (const Case& c : cases) {
    Source source(41);
    std::vector<std::int32_t> history = {1, 2, 3};
    std::vector<std::int32_t> tokens;
    std::vector<float> logprobs;
    for (int i = 0; i < kPicks; ++i) {
      DeviceLogits logits(backend, floats(kVocab, 8.0F, source));
      // First: a penalty changes the logits where they are.
      const std::int32_t chosen = logits.chosen(c.settings, history);
      const Result<sampler::Pick> pick = sampler::pick(logits.row(), c.settings, history, 3);
      CHECK(pick->token == chosen, "the backend chose token {}, the definition {}", chosen, pick->token);
      tokens.push_back(pick->token);
      history.push_back(pick->token);
      logprobs.push_back(pick->logprob);
      for (const sampler::TokenLogprob& other : pick->most_likely) {
        tokens.push_back(other.token);
        logprobs.push_back(other.logprob);
      }
    }
    const SamplingSettings& s = c.settings;
    out.inputs(fmt::format(
        "seed 41, 200 rows of 1000 in (-8, 8), history 1 2 3 and the picks; temperature {}, top-k {}, "
        "top-p {}, min-p {}, penalty {}, seed {}, 3 alternatives",
        s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, s.seed));
    out.add(fmt::format("pick/{}/tokens", c.name), tokens);
    out.add(fmt::format("pick/{}/logprobs", c.name), logprobs);
  }
}

std::vector<std::uint8_t> flat(std::span<const Digest> digests) {
  std::vector<std::uint8_t> bytes;
  for (const Digest& digest : digests) bytes.insert(bytes.end(), digest.begin(), digest.end());
  return bytes;
}

void record_keys(Recorder& out) {
  const kv::BlockKey root = kv::root_key(sha256("model"), exact::kCanonVersion);
  std::vector<std::int32_t> tokens(300);
  std::iota(tokens.begin(), tokens.end(), 1000);
  const std::span<const std::int32_t> all(tokens);
  const core::BlockLayout layout{100};
  const kv::AnchorOdds odds{0.25F, 4.0F};
  out.inputs("model digest SHA-256('model'), canon-1, tokens 1000.., anchors 100, odds 0.25 and 4");
  out.add("keys/root", std::span<const std::uint8_t>(root.digest));
  out.add("keys/block",
          std::span<const std::uint8_t>(kv::block_key(root, core::Segment::kSink, all.first(1)).digest));
  out.add("keys/first_context",
          std::span<const std::uint8_t>(kv::first_context_key(root, odds, all.first(64)).digest));
  std::vector<Digest> chain;
  for (const kv::BlockKey& key : kv::chain_keys(root, layout, odds, tokens)) chain.push_back(key.digest);
  out.add("keys/chain", flat(chain));
}

}  // namespace

void record_sampling(Backend& backend, Recorder& out) {
  record_probabilities(backend, out);
  record_picks(backend, out);
}

void record_pages(Backend& backend, Recorder& out) {
  constexpr std::int64_t kPages = 6;
  constexpr std::int64_t kBlocks = 3;
  const std::int64_t page_bytes = backend::page_bytes(80);
  Source source(50);
  const Device<std::uint8_t> pool(backend,
                                  bytes(static_cast<std::size_t>(kBlocks * kPages * page_bytes), source));
  const std::vector<std::int32_t> blocks = {2, 0};
  const auto pending = backend.page_digests({pool.data(), kPages * page_bytes, page_bytes, kPages, blocks});
  const std::span<const Digest> digests = pending->wait();
  out.inputs("seed 50, blocks 2 and 0 of 3, 6 pages each, head size 80");
  out.add("page_digests", flat(digests));
  std::vector<Digest> by_block;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    by_block.push_back(kv::block_digest(digests.subspan(i * kPages, kPages)));
  }
  out.add("block_digests", flat(by_block));
  record_keys(out);
}

}  // namespace fieldprint::vectors
