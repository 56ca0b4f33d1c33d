#include "verify/replay.h"

#include <algorithm>
#include <chrono>

#include "core/anchor_mass.h"
#include "exact/format.h"
#include "kv/backend_memory.h"
#include "sampler/sampler.h"

namespace fieldprint::verify {
namespace {

// Long enough that many threads share each operation evenly, short enough that activations stay in a shared
// cache.
constexpr std::int64_t kMostChunkTokens = 768;

/// Tokens of each chunk of a history, about as many in each: a multiple of what kernels take at once, so that
/// the last may have fewer.
std::int32_t chunk_tokens(std::int64_t history) {
  constexpr std::int64_t kMultiple = 48;
  static_assert(kMostChunkTokens % kMultiple == 0);
  const std::int64_t chunks = std::max<std::int64_t>((history + kMostChunkTokens - 1) / kMostChunkTokens, 1);
  const std::int64_t each = std::max<std::int64_t>((history + chunks - 1) / chunks, 1);
  return static_cast<std::int32_t>((each + kMultiple - 1) / kMultiple * kMultiple);
}

core::BlockLayout layout_of(const commit::Body& body) {
  return {static_cast<std::int64_t>(body.anchor_tokens.size())};
}

std::vector<std::int32_t> history_of(const commit::Body& body) {
  std::vector<std::int32_t> tokens;
  for (const auto* part :
       {&body.sink_tokens, &body.anchor_tokens, &body.context_tokens, &body.output_tokens}) {
    tokens.insert(tokens.end(), part->begin(), part->end());
  }
  tokens.pop_back();
  return tokens;
}

kv::KvGeometry geometry_of(const weights::ModelSpec& spec) {
  return {spec.layers, spec.kv_heads, spec.head_dim};
}

kv::BlockPool pool_for(const commit::Body& body, const weights::ModelSpec& spec, backend::Backend& backend) {
  const kv::KvGeometry geometry = geometry_of(spec);
  const std::int64_t blocks = layout_of(body).blocks_for(static_cast<std::int64_t>(history_of(body).size()));
  return {geometry, blocks, kv::backend_memory(backend, blocks * geometry.block_bytes())};
}

}  // namespace

Replay::Replay(const commit::Body& body, const weights::ModelFile& file, backend::Backend& backend)
    : body_(body),
      chunk_tokens_(chunk_tokens(static_cast<std::int64_t>(history_of(body).size()))),
      model_(file, backend, chunk_tokens_),
      geometry_(geometry_of(file.spec())),
      layout_(layout_of(body)),
      tokens_(history_of(body)),
      prompt_tokens_(static_cast<std::int64_t>(tokens_.size() - body.output_tokens.size() + 1)),
      seen_(file.spec().vocab),
      pool_(pool_for(body, file.spec(), backend)),
      cache_(pool_, kv::backend_page_hasher(backend, pool_), false),
      table_(cache_, kv::root_key(file.digest(), exact::kCanonVersion), layout_,
             {body.anchor_bounds.floor_odds(), body.anchor_bounds.ceiling_odds()}) {}

Result<Replayed> Replay::run(const ReplayProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  Replayed out;
  const std::int64_t total = static_cast<std::int64_t>(tokens_.size());
  for (std::int64_t begin = 0; begin < total; begin += chunk_tokens_) {
    const std::int64_t end = std::min<std::int64_t>(begin + chunk_tokens_, total);
    if (Status status = compute(begin, end, out); !status) return status.error();
    if (progress) progress(end, total);
  }
  const std::vector<Digest> digests = table_.digests();
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(digests.size()); ++i) {
    out.blocks.push_back(core::block_record(layout_, i, total, digests[static_cast<std::size_t>(i)]));
  }
  out.anchor_mass = core::mean_anchor_mass(mass_sum_, static_cast<std::int64_t>(out.output.size()));
  out.tokens = total;
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

Status Replay::compute(std::int64_t begin, std::int64_t end, Replayed& out) {
  const std::span<const std::int32_t> tokens = std::span<const std::int32_t>(tokens_).subspan(
      static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  CHECK(table_.append(tokens), "the replay's pool is too small");
  // The logits at a position choose the token after it.
  const std::int64_t first = std::max(begin, prompt_tokens_ - 1);
  const std::int32_t rows = static_cast<std::int32_t>(std::max<std::int64_t>(end - first, 0));
  const model::SequenceSlice slice{.tokens = tokens,
                                   .first_position = static_cast<std::int32_t>(begin),
                                   .anchor_tokens = static_cast<std::int32_t>(layout_.anchor_tokens),
                                   .blocks = table_.blocks().data(),
                                   .floor_odds = table_.odds().floor,
                                   .ceiling_odds = table_.odds().ceiling,
                                   .logits = rows};
  if (!model_.forward({&slice, 1}, {pool_.base(), geometry_.block_bytes()})[0]) {
    return refuted("the model's activations are not finite on the stated history");
  }
  table_.seal_filled();
  return choose_outputs(first, rows, out);
}

/// What the model chooses after each of the last `rows` tokens computed, of which the first is at
/// `first_position`.
Status Replay::choose_outputs(std::int64_t first_position, std::int32_t rows, Replayed& out) {
  const bool penalised = body_.sampling.repetition_penalty != 1.0F;
  for (std::int32_t done = 0; done < rows; done += model_.max_logit_rows()) {
    const std::int32_t count = std::min(model_.max_logit_rows(), rows - done);
    std::vector<model::RowChoice> choices;
    std::vector<sampler::SeenTokens> seen;
    seen.reserve(penalised ? static_cast<std::size_t>(count) : 0);
    for (std::int32_t row = 0; row < count; ++row) {
      const auto position = static_cast<std::size_t>(first_position + done + row + 1);
      if (penalised) {
        seen_.add(std::span<const std::int32_t>(tokens_).subspan(seen_tokens_, position - seen_tokens_));
        seen_tokens_ = position;
        seen.push_back(seen_);
      }
      choices.push_back({sampler::choice_of(body_.sampling, position),
                         penalised ? seen.back().words() : std::span<const std::uint32_t>()});
    }
    for (const std::int32_t token : model_.choose(done, choices)) {
      if (token == exact::kNoToken) return refuted(sampler::not_finite().message);
      out.output.push_back(token);
    }
    if (layout_.anchor_tokens == 0) continue;
    for (std::int32_t row = 0; row < count; ++row) {
      core::add_anchor_mass(mass_sum_, model_.anchor_mass(done + row));
    }
  }
  return {};
}

std::vector<std::uint8_t> Replay::block_bytes(std::int64_t index) const {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(geometry_.block_bytes()));
  const kv::BlockId block = table_.blocks()[static_cast<std::size_t>(index)];
  model_.backend().download(bytes.data(), pool_.data(block), geometry_.block_bytes());
  return bytes;
}

}  // namespace fieldprint::verify
