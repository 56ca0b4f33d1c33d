#pragma once

#include <span>
#include <string>
#include <vector>

#include "anchor/anchor.h"
#include "commit/receipt.h"
#include "commit/segment.h"
#include "exact/format.h"
#include "kv/backend_memory.h"
#include "kv/block_table.h"
#include "model/model.h"
#include "sampler/sampler.h"
#include "tokenizer/answer_text.h"
#include "tokenizer/chat_template.h"

/// A generator for tests that knows no batches, chunks or caches: one token after the other.
namespace fieldprint::verify::testing {

struct Question {
  std::string anchor;  ///< empty: none
  std::string text;
  core::AnchorBounds anchor_bounds;
  SamplingSettings sampling;
  std::int32_t max_tokens = 20;
  std::vector<std::string> stop;
  std::vector<commit::Input> inputs{};
};

struct Generated {
  commit::Body body;
  std::vector<std::uint8_t> kv;  ///< bytes of the blocks, in table order
};

class Generator {
 public:
  Generator(const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer, backend::Backend& backend)
      : file_(file), tokenizer_(tokenizer), backend_(backend), model_(file, backend, 1) {}

  Generated answer(const Question& question) {
    Generated out{start(question), {}};
    commit::Body& body = out.body;
    const core::BlockLayout layout{static_cast<std::int64_t>(body.anchor_tokens.size())};
    const weights::ModelSpec& spec = file_.spec();
    const kv::KvGeometry geometry{spec.layers, spec.kv_heads, spec.head_dim};
    const std::int64_t blocks = layout.blocks_for(spec.context);
    kv::BlockPool pool(geometry, blocks, kv::backend_memory(backend_, blocks * geometry.block_bytes()));
    kv::PrefixCache cache(pool, kv::backend_page_hasher(backend_, pool), false);
    kv::BlockTable table(cache, kv::root_key(file_.digest(), exact::kCanonVersion), layout,
                         {body.anchor_bounds.floor_odds(), body.anchor_bounds.ceiling_odds()});
    std::vector<std::int32_t> history = body.sink_tokens;
    history.insert(history.end(), body.anchor_tokens.begin(), body.anchor_tokens.end());
    history.insert(history.end(), body.context_tokens.begin(), body.context_tokens.end());
    const std::size_t prompt = history.size();

    tokenizer::AnswerText text(tokenizer_, body.stop);
    std::vector<double> mass(layout.anchor_tokens > 0 ? static_cast<std::size_t>(spec.layers) : 0);
    for (bool ended = false; !ended;) {
      const std::int64_t at = table.size();
      CHECK(table.append(std::span(history).subspan(static_cast<std::size_t>(at), 1)));
      model_.forward(std::vector<model::SequenceSlice>{slice(table, history, at)},
                     {pool.base(), geometry.block_bytes()});
      table.seal_filled();
      if (table.size() < static_cast<std::int64_t>(history.size())) continue;
      history.push_back(pick(body, history));
      const std::vector<float> share = model_.anchor_mass(0);
      for (std::size_t i = 0; i < mass.size(); ++i) mass[i] += static_cast<double>(share[i]);
      ended = text.push(history.back()).ended;
      if (ended) body.finish_reason = core::FinishReason::kStop;
      if (ended || history.size() - prompt < static_cast<std::size_t>(body.max_tokens)) continue;
      body.finish_reason = text.finish().ended ? core::FinishReason::kStop : core::FinishReason::kLength;
      ended = true;
    }

    body.output_tokens.assign(history.begin() + static_cast<std::ptrdiff_t>(prompt), history.end());
    body.output_digest = commit::digest_of(body.output_tokens);
    for (const double sum : mass) {
      body.anchor_mass.push_back(static_cast<float>(sum / static_cast<double>(body.output_tokens.size())));
    }
    const std::vector<Digest> digests = table.digests();
    for (std::size_t i = 0; i < digests.size(); ++i) {
      body.kv_blocks.push_back(
          core::block_record(layout, static_cast<std::int64_t>(i), table.size(), digests[i]));
      const std::size_t at = out.kv.size();
      out.kv.resize(at + static_cast<std::size_t>(geometry.block_bytes()));
      backend_.download(out.kv.data() + at, pool.data(table.blocks()[i]), geometry.block_bytes());
    }
    body.parent = commit::parent_of(body).value();
    return out;
  }

 private:
  commit::Body start(const Question& question) const {
    commit::Body body;
    body.model_digest = file_.digest();
    body.canon_version = exact::kCanonVersion;
    if (!question.anchor.empty()) {
      const auto anchor = anchor::Anchor::make(anchor::AnchorType::kPolicy, "", question.anchor).value();
      body.anchors.push_back({anchor.id(), anchor.canonical_bytes()});
    }
    const auto prompt = tokenizer::render_raw(tokenizer_, question.anchor, question.text).value();
    body.anchor_bounds = question.anchor_bounds;
    body.sink_tokens = prompt.sink;
    body.anchor_tokens = prompt.anchors;
    body.context_tokens = prompt.context;
    body.sampling = question.sampling;
    body.max_tokens = question.max_tokens;
    body.stop = question.stop;
    body.inputs = question.inputs;
    return body;
  }

  model::SequenceSlice slice(const kv::BlockTable& table, const std::vector<std::int32_t>& history,
                             std::int64_t at) const {
    return {.tokens = std::span(history).subspan(static_cast<std::size_t>(at), 1),
            .first_position = static_cast<std::int32_t>(at),
            .anchor_tokens = static_cast<std::int32_t>(table.layout().anchor_tokens),
            .blocks = table.blocks().data(),
            .floor_odds = table.odds().floor,
            .ceiling_odds = table.odds().ceiling,
            .logits = 1};
  }

  std::int32_t pick(const commit::Body& body, const std::vector<std::int32_t>& history) {
    const sampler::LogitRow row{model_.logits(0, 1),
                                [this](float scale) { return model_.probabilities(0, scale); },
                                [this](std::span<const float> other) { model_.set_logits(0, other); }};
    return sampler::pick(row, body.sampling, history, -1).value().token;
  }

  const weights::ModelFile& file_;
  const tokenizer::Tokenizer& tokenizer_;
  backend::Backend& backend_;
  model::Model model_;
};

}  // namespace fieldprint::verify::testing
