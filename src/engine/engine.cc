#include "engine/engine.h"

#include <algorithm>
#include <set>

#include "base/bounds.h"
#include "core/settings.h"
#include "exact/format.h"
#include "kv/backend_memory.h"

namespace fieldprint::engine {
namespace {

Status check(const Options& options) {
  const auto refuse = [](const char* name, std::int64_t value, std::int64_t most) {
    return caller_error(fmt::format("{} is {}, but must be from 1 to {}", name, value, most));
  };
  if (options.kv_blocks < 1 || options.kv_blocks > bounds::kMaxKvBlocks) {
    return refuse("--kv-blocks", options.kv_blocks, bounds::kMaxKvBlocks);
  }
  if (options.max_batch < 1 || options.max_batch > bounds::kMaxBatch) {
    return refuse("--batch", options.max_batch, bounds::kMaxBatch);
  }
  if (options.prefill_chunk < 1 || options.prefill_chunk > bounds::kMaxStepTokens) {
    return refuse("--prefill-chunk", options.prefill_chunk, bounds::kMaxStepTokens);
  }
  if (options.step_tokens < options.max_batch || options.step_tokens > bounds::kMaxStepTokens) {
    return refuse("the step's token budget", options.step_tokens, bounds::kMaxStepTokens);
  }
  if (!(options.scrub_share >= 0 && options.scrub_share <= 1)) {
    return caller_error(
        fmt::format("the scrubber's share of the time is {}, but must be from 0 to 1", options.scrub_share));
  }
  if (options.swap.bytes != 0 && !options.hash_pages) {
    return caller_error("blocks cannot be swapped without digests to check them by");
  }
  return {};
}

/// Digests that say nothing and cost nothing.
kv::PageHasher no_page_hasher(const kv::BlockPool& pool) {
  return [&pool](std::span<const kv::BlockId> blocks) {
    const std::size_t pages = blocks.size() * static_cast<std::size_t>(pool.geometry().pages_per_block());
    return std::make_unique<backend::ReadyDigests>(std::vector<Digest>(pages), std::chrono::nanoseconds(0));
  };
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const weights::ModelFile& file,
                                               const tokenizer::Tokenizer& tokenizer,
                                               backend::Backend& backend, const Options& options,
                                               Events events, Commits* commits) {
  if (Status status = engine::check(options); !status) return status.error();
  const weights::ModelSpec& spec = file.spec();
  const kv::KvGeometry geometry{spec.layers, spec.kv_heads, spec.head_dim};
  kv::BlockPool pool(geometry, options.kv_blocks,
                     kv::backend_memory(backend, options.kv_blocks * geometry.block_bytes()),
                     options.placement_seed);
  std::unique_ptr<kv::SwapArea> swap;
  if (options.swap.bytes != 0 && options.prefix_cache) {
    auto area = kv::SwapArea::create(geometry, options.swap);
    if (!area) return area.error();
    swap = std::move(*area);
  }
  return std::unique_ptr<Engine>(new Engine(file, tokenizer, backend, options, std::move(events), commits,
                                            std::move(pool), std::move(swap)));
}

Engine::Engine(const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer,
               backend::Backend& backend, const Options& options, Events events, Commits* commits,
               kv::BlockPool pool, std::unique_ptr<kv::SwapArea> swap)
    : file_(file),
      tokenizer_(tokenizer),
      options_(options),
      events_(std::move(events)),
      commits_(commits == nullptr ? no_commits_ : *commits),
      model_(file, backend, options.step_tokens, options.max_batch),
      pool_(std::move(pool)),
      cache_(pool_, options.hash_pages ? kv::backend_page_hasher(backend, pool_) : no_page_hasher(pool_),
             options.prefix_cache, std::move(swap)),
      scrubber_(cache_, options.hash_pages ? options.scrub_share : 0,
                std::max<std::int64_t>(backend.digests_at_once() / pool_.geometry().pages_per_block(), 1)),
      root_(kv::root_key(file.digest(), exact::kCanonVersion)) {}

Engine::~Engine() {
  sequences_.clear();
  leases_.clear();
}

Status Engine::check(const core::Request& request) const {
  const std::int64_t prompt = static_cast<std::int64_t>(request.prompt.size());
  if (prompt == 0) return caller_error("the prompt has no tokens");
  if (request.layout.anchor_tokens < 0) return caller_error("the number of anchor tokens is negative");
  if (request.layout.anchor_tokens > prompt - 1)
    return caller_error("the prompt is shorter than its anchors");
  if (request.layout.anchor_tokens > 0 && prompt == request.layout.preface_tokens()) {
    return caller_error("the prompt has anchors but no text of its own");
  }
  if (prompt >= file_.spec().context) {
    return caller_error(
        fmt::format("the prompt has {} tokens, but the model's context holds {}, the answer included", prompt,
                    file_.spec().context));
  }
  for (const std::int32_t token : request.prompt) {
    if (token < 0 || token >= file_.spec().vocab)
      return caller_error(fmt::format("there is no token {}", token));
  }
  if (const auto invalid = core::find_invalid(request)) return caller_error(invalid->message());
  if (request.logprobs > bounds::kMaxLogprobs) {
    return caller_error(fmt::format("at most {} alternatives can be reported a token", bounds::kMaxLogprobs));
  }
  if (request.hold_text && !commits_.records()) {
    return caller_error("text cannot be held until it is validated where answers are not recorded");
  }
  return {};
}

Result<core::SequenceId> Engine::submit(core::Request request) {
  if (Status status = check(request); !status) return status.error();
  const core::SequenceId id = next_id_;
  if (Status status = commits_.open(id, request); !status) return status.error();
  ++next_id_;
  const kv::BlockKey lease = pin_anchors(request);
  const kv::AnchorOdds odds{request.anchor_bounds.floor_odds(), request.anchor_bounds.ceiling_odds()};
  kv::BlockTable table(cache_, root_, request.layout, odds);
  shares_.enter(request.tenant);
  auto sequence = std::make_unique<Sequence>(id, std::move(request), std::move(table), tokenizer_);
  sequence->lease = lease;
  if (sequence->request.sampling.repetition_penalty != 1.0F) {
    sequence->seen.emplace(file_.spec().vocab).add(sequence->tokens);
  }
  await_admission(*sequence);
  sequences_.emplace(id, std::move(sequence));
  return id;
}

kv::BlockKey Engine::pin_anchors(const core::Request& request) {
  if (request.layout.anchor_tokens == 0) return root_;
  const std::span<const std::int32_t> preface(request.prompt.data(),
                                              static_cast<std::size_t>(request.layout.preface_tokens()));
  std::vector<kv::BlockKey> keys = kv::chain_keys(root_, request.layout, {}, preface);
  const kv::BlockKey last = keys.back();
  if (!leases_.contains(last)) leases_.emplace(last, cache_.lease(std::move(keys)));
  return last;
}

bool Engine::end_idle_leases() {
  std::set<kv::BlockKey> used;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->active()) used.insert(sequence->lease);
  }
  return std::erase_if(leases_, [&](const auto& lease) { return !used.contains(lease.first); }) > 0;
}

void Engine::cancel(core::SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  if (!stepping_) return drop(id);
  found->second->dropped = true;
  ended_.push_back(id);
}

void Engine::drop(core::SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  Sequence& sequence = *found->second;
  sequence.dropped = true;
  // Effects that depend on its commits go on to their outcome.
  while (!check_pages(sequence)) continue;
  const Trail& trail = sequence.trail;
  if (trail.next < trail.sealed) {
    commits_.refute(id, trail.next, "a page was damaged, and the request ended before it was computed again");
  }
  commits_.end(id);
  shares_.leave(sequence.request.tenant);
  sequences_.erase(found);
}

Status Engine::request_effect(core::SequenceId id, std::function<void(const EffectOutcome&)> outcome) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end() || found->second->dropped) {
    return caller_error(fmt::format("there is no sequence {} that could have effects", id));
  }
  Sequence& sequence = *found->second;
  const auto last = static_cast<std::int64_t>(sequence.tokens.size()) - 1;
  const EffectId effect = commits_.request(id, sequence.commit_of(last) + 1);
  effects_.emplace(effect, Effect{id, std::move(outcome)});
  ++sequence.trail.effects;
  return {};
}

EngineStats Engine::stats() const {
  EngineStats stats = stats_;
  stats.cache = cache_.stats();
  stats.free_blocks = pool_.free_blocks();
  stats.scrubbed_blocks = scrubber_.checked();
  stats.damaged_blocks += static_cast<std::int64_t>(stats.cache.swap.damaged);
  return stats;
}

std::vector<std::uint8_t> Engine::kv_bytes(core::SequenceId id) const {
  const kv::BlockTable& table = sequences_.at(id)->table;
  const std::int64_t bytes = pool_.geometry().block_bytes();
  std::vector<std::uint8_t> out(static_cast<std::size_t>(bytes) * table.blocks().size());
  std::uint8_t* to = out.data();
  for (const kv::BlockId block : table.blocks()) {
    model_.backend().download(to, pool_.data(block), bytes);
    to += bytes;
  }
  return out;
}

}  // namespace fieldprint::engine
