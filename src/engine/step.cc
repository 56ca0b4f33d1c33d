#include <algorithm>
#include <utility>

#include "engine/engine.h"
#include "sampler/sampler.h"

/// One step, in the order in which data flows: scheduler, cache, model, sampler, stream. Only here do the
/// stages meet.
namespace fieldprint::engine {
namespace {

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

bool Engine::step() {
  CHECK(!stepping_,
        "the step before was interrupted: its tokens have blocks whose contents were not computed");
  stepping_ = true;
  const Clock::time_point start = Clock::now();
  heed_news();
  check_awaited_pages();
  const scheduler::Decision decision = decide();
  for (const scheduler::Impossible& impossible : decision.impossible) {
    fail(impossible.id, caller_error(impossible.message()));
  }
  release_preempted(decision);
  admit(decision);
  const std::vector<Sequence*> batch = place_tokens(decision);
  if (!batch.empty()) {
    sample(batch, compute(batch));
    ++stats_.steps;
  } else {
    await_news();
  }
  scrubber_.scrub(Clock::now() - start);
  report_swap();
  stepping_ = false;
  for (const core::SequenceId id : std::exchange(ended_, {})) drop(id);
  return !sequences_.empty() || !effects_.empty();
}

scheduler::SequenceView Engine::view(const Sequence& sequence) const {
  const core::Request& request = sequence.request;
  const std::int64_t tokens = sequence.known_tokens();
  scheduler::SequenceView view{.id = sequence.id,
                               .arrival = sequence.id,
                               .tenant = request.tenant,
                               .layout = request.layout,
                               .tokens = tokens};
  const std::int64_t longest = sequence.prompt_tokens() + request.max_tokens - 1;
  view.limit_tokens = std::max(tokens, std::min<std::int64_t>(longest, file_.spec().context));
  // What computes suspect tokens again seals nothing new.
  view.ready = sequence.confirmed || commits_.may_run(sequence.id);
  if (sequence.running) {
    view.computed = sequence.table.size();
    view.tail_shared = sequence.table.tail_shared();
    view.reclaimable_blocks = sequence.table.reclaimable_blocks();
    view.pinned_blocks = sequence.table.pinned_blocks();
    return view;
  }
  const kv::PrefixCache::Probe probe = cache_.probe(sequence.prefix_keys);
  const std::int64_t found = probe.blocks + probe.swapped;
  if (found > 0) view.computed = std::min(request.layout.block_end(found - 1), tokens - 1);
  view.cached_blocks = probe.cached;
  view.swapped_blocks = probe.swapped;
  view.pinned_blocks = probe.pinned;
  return view;
}

/// The keys under which a waiting sequence may find its prefix; hashed once, not in every step that it waits.
/// The last token is always computed: its logits are what the step is for.
void Engine::await_admission(Sequence& sequence) {
  const std::span<const std::int32_t> known = sequence.known();
  sequence.prefix_keys =
      kv::chain_keys(root_, sequence.request.layout, sequence.table.odds(), known.first(known.size() - 1));
}

/// Waiting sequences that may be admitted now. Of those that wait for the same anchors only the first goes
/// ahead; the others follow when the anchors' blocks are there, instead of computing them once more.
std::vector<scheduler::SequenceView> Engine::waiting_views() {
  std::vector<scheduler::SequenceView> views;
  std::vector<std::span<const std::int32_t>> coming;
  const auto preface = [](const Sequence& sequence) {
    return std::span<const std::int32_t>(sequence.tokens)
        .first(static_cast<std::size_t>(sequence.request.layout.preface_tokens()));
  };
  for (const auto& [id, sequence] : sequences_) {
    const core::BlockLayout& layout = sequence->request.layout;
    if (sequence->running && layout.anchor_tokens > 0 && sequence->table.size() < layout.preface_tokens()) {
      coming.push_back(preface(*sequence));
    }
  }
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->running || !sequence->active()) continue;
    const scheduler::SequenceView seen = view(*sequence);
    if (!seen.ready) continue;
    const core::BlockLayout& layout = sequence->request.layout;
    if (layout.anchor_tokens > 0 && seen.computed < layout.preface_tokens()) {
      const std::span<const std::int32_t> mine = preface(*sequence);
      const auto same = [&](std::span<const std::int32_t> other) { return std::ranges::equal(mine, other); };
      if (std::any_of(coming.begin(), coming.end(), same)) continue;
      coming.push_back(mine);
    }
    views.push_back(seen);
  }
  return views;
}

/// Decides again after whatever makes room: anchors that nobody uses, answers that only wait for validation.
scheduler::Decision Engine::decide() {
  while (true) {
    scheduler::Decision decision = plan();
    if (!decision.impossible.empty() && end_idle_leases()) continue;
    if (crowded(decision) && release_finished()) continue;
    if (!pages_hold(decision.preempt)) continue;
    return decision;
  }
}

scheduler::Decision Engine::plan() {
  std::vector<scheduler::SequenceView> running;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->running && sequence->active()) running.push_back(view(*sequence));
  }
  const scheduler::Budgets budgets{.step_tokens = options_.step_tokens,
                                   .prefill_chunk = options_.prefill_chunk,
                                   .max_batch = options_.max_batch,
                                   .total_blocks = pool_.blocks(),
                                   .pinned_blocks = cache_.stats().pinned_blocks,
                                   .available_blocks = cache_.available_blocks()};
  return scheduler::decide(waiting_views(), running, budgets, shares_);
}

void Engine::release_preempted(const scheduler::Decision& decision) {
  for (const core::SequenceId id : decision.preempt) {
    Sequence& sequence = *sequences_.at(id);
    sequence.table.release();
    sequence.running = false;
    await_admission(sequence);
    ++stats_.preemptions;
  }
}

/// All take what is resident before any has swapped blocks brought back, for which others may be evicted.
void Engine::admit(const scheduler::Decision& decision) {
  const auto computed = [this](core::SequenceId id) {
    const std::span<const std::int32_t> known = sequences_.at(id)->known();
    return known.first(known.size() - 1);
  };
  for (const core::SequenceId id : decision.admit) sequences_.at(id)->table.match_prefix(computed(id));
  for (const core::SequenceId id : decision.admit) {
    Sequence& sequence = *sequences_.at(id);
    sequence.answer.swapped_tokens += sequence.table.bring_back(computed(id));
    sequence.running = true;
    if (!sequence.admitted) {
      sequence.admitted = Clock::now();
      sequence.answer.cached_tokens = sequence.table.size();
    }
  }
}

void Engine::report_swap() {
  if (!events_.notice) return;
  if (const auto trouble = cache_.take_swap_trouble()) {
    events_.notice(*trouble + "; what it does not hold is computed again");
  }
  const std::uint64_t damaged = cache_.stats().swap.damaged;
  if (damaged == swap_damage_told_) return;
  swap_damage_told_ = damaged;
  events_.notice(fmt::format(
      "swapped KV blocks came back altered, {} so far; their tokens are computed again", damaged));
}

/// Gives the tokens of the step their slots.
std::vector<Sequence*> Engine::place_tokens(const scheduler::Decision& decision) {
  std::vector<Sequence*> batch;
  for (const scheduler::Run& run : decision.run) {
    Sequence& sequence = *sequences_.at(run.id);
    // A prefix may have become longer between the view and the admission.
    sequence.step_tokens = std::min(run.tokens, sequence.left());
    const std::span<const std::int32_t> tokens(sequence.tokens.data() + sequence.table.size(),
                                               static_cast<std::size_t>(sequence.step_tokens));
    CHECK(sequence.table.append(tokens), "the scheduler gave sequence {} more blocks than there are", run.id);
    shares_.charge(sequence.request.tenant, run.tokens);
    batch.push_back(&sequence);
  }
  // Neighbours that share anchors have their pages read once; no result depends on the order.
  const auto preface = [](const Sequence* sequence) {
    const std::span<const kv::BlockId> blocks = sequence->table.blocks();
    const std::size_t seen = static_cast<std::size_t>(sequence->request.layout.preface_blocks());
    return blocks.first(std::min(seen, blocks.size()));
  };
  std::stable_sort(batch.begin(), batch.end(), [&](const Sequence* a, const Sequence* b) {
    return std::ranges::lexicographical_compare(preface(a), preface(b));
  });
  return batch;
}

std::vector<std::int32_t> Engine::compute(const std::vector<Sequence*>& batch) {
  std::vector<model::SequenceSlice> slices;
  std::vector<model::RowChoice> choices;
  for (Sequence* sequence : batch) {
    const std::int64_t first = sequence->table.size() - sequence->step_tokens;
    slices.push_back({.tokens = std::span<const std::int32_t>(sequence->tokens)
                                    .subspan(static_cast<std::size_t>(first),
                                             static_cast<std::size_t>(sequence->step_tokens)),
                      .first_position = static_cast<std::int32_t>(first),
                      .anchor_tokens = static_cast<std::int32_t>(sequence->request.layout.anchor_tokens),
                      .blocks = sequence->table.blocks().data(),
                      .floor_odds = sequence->table.odds().floor,
                      .ceiling_odds = sequence->table.odds().ceiling,
                      .logits = sequence->left() == 0 ? 1 : 0});
    stats_.computed_tokens += sequence->step_tokens;
    sequence->row = sequence->left() == 0 ? static_cast<std::int32_t>(choices.size()) : -1;
    if (sequence->row < 0) continue;
    choices.push_back({sampler::choice_of(sequence->request.sampling, sequence->known().size()),
                       sequence->seen ? sequence->seen->words() : std::span<const std::uint32_t>()});
  }
  model_.begin(slices, {pool_.base(), pool_.geometry().block_bytes()}, choices);
  // What earlier steps sealed is hashed by now, or will be long before this one is done.
  cache_.settle();
  seal_commits();
  model::StepResult result = model_.finish();
  // A history that was not finite once stays so; nobody else may find its blocks in the cache.
  std::vector<kv::BlockTable*> tables;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    batch[i]->finite = batch[i]->finite && result.finite[i];
    if (batch[i]->finite) tables.push_back(&batch[i]->table);
  }
  kv::BlockTable::seal_filled(tables);
  for (const kv::BlockId block : cache_.take_suspects()) lose(block);
  return std::move(result.tokens);
}

void Engine::sample(const std::vector<Sequence*>& batch, std::span<const std::int32_t> tokens) {
  for (Sequence* sequence : batch) {
    // What was rewound in this step computes its token again.
    const std::int32_t row = sequence->row;
    if (row < 0 || sequence->dropped) continue;
    if (!sequence->finite) {
      fail(sequence->id, environment_error("the model's activations are not finite on this prompt"));
      continue;
    }
    sampler::Pick picked;
    picked.token = tokens[static_cast<std::size_t>(row)];
    if (picked.token == exact::kNoToken) {
      fail(sequence->id, sampler::not_finite());
      continue;
    }
    if (sequence->request.logprobs >= 0) {
      Result<sampler::Pick> again = pick_with_logprobs(*sequence, row);
      CHECK(again && again->token == picked.token, "the backend chose token {}, which the sampler does not",
            picked.token);
      picked = std::move(*again);
    }
    if (sequence->confirmed) {
      confirm_token(*sequence, picked, row);
    } else {
      append_token(*sequence, picked, row);
    }
  }
}

Result<sampler::Pick> Engine::pick_with_logprobs(const Sequence& sequence, std::int32_t row) {
  const sampler::LogitRow access{model_.chosen_logits(row),
                                 [&](float scale) { return model_.probabilities(row, scale); },
                                 [&](std::span<const float> other) { model_.set_logits(row, other); }};
  return sampler::pick(access, sequence.request.sampling, sequence.known(), sequence.request.logprobs);
}

void Engine::append_token(Sequence& sequence, const sampler::Pick& pick, std::int32_t logit_row) {
  count_token(sequence, pick.token, logit_row);
  sequence.answer.output.push_back(output_token(pick));
  sequence.tokens.push_back(pick.token);
  if (!sequence.first_token) sequence.first_token = Clock::now();

  if (events_.token) events_.token(sequence.id);
  using core::FinishReason;
  const tokenizer::AnswerText::Piece piece = sequence.text.push(pick.token);
  give_text(sequence, piece.text);
  if (sequence.dropped) return;
  const bool full = static_cast<std::int64_t>(sequence.answer.output.size()) >= sequence.request.max_tokens ||
                    static_cast<std::int64_t>(sequence.tokens.size()) >= file_.spec().context;
  if (piece.ended && !options_.ignore_end) {
    finish(sequence, FinishReason::kStop);
  } else if (full) {
    const tokenizer::AnswerText::Piece rest = sequence.text.finish();
    give_text(sequence, rest.text);
    finish(sequence, rest.ended ? FinishReason::kStop : FinishReason::kLength);
  }
}

/// What follows from a token besides the token itself. Its place is the end of the known ones.
void Engine::count_token(Sequence& sequence, std::int32_t token, std::int32_t logit_row) {
  const core::BlockLayout& layout = sequence.request.layout;
  const std::int64_t position = sequence.known_tokens();
  if (sequence.seen) sequence.seen->add(token);
  if (layout.anchor_tokens == 0) return;
  if (layout.place(position).slot == 0) {
    sequence.trail.mass[position - sequence.prompt_tokens()] = sequence.mass_sum;
  }
  sequence.add_mass(model_.anchor_mass(logit_row));
}

/// Text that the last token completed.
void Engine::give_text(Sequence& sequence, const std::string& text) {
  sequence.answer.text += text;
  if (text.empty() || sequence.dropped) return;
  if (sequence.request.hold_text) {
    const auto last = static_cast<std::int64_t>(sequence.tokens.size()) - 1;
    sequence.held.push_back({sequence.commit_of(last), text});
  } else if (events_.text) {
    events_.text(sequence.id, text);
  }
}

void Engine::finish(Sequence& sequence, core::FinishReason reason) {
  if (sequence.dropped) return;
  core::Answer& answer = sequence.answer;
  answer.finish_reason = reason;
  answer.blocks = sequence.block_records();
  answer.anchor_mass = sequence.mean_mass();
  const Clock::time_point now = Clock::now();
  answer.prefill_seconds = seconds(*sequence.first_token - *sequence.admitted);
  answer.decode_seconds = seconds(now - *sequence.first_token);
  seal_answer(sequence);
  if (events_.finished && !sequence.request.hold_text) events_.finished(sequence.id, answer);
}

void Engine::fail(core::SequenceId id, Error error) {
  Sequence& sequence = *sequences_.at(id);
  if (std::exchange(sequence.dropped, true)) return;
  ended_.push_back(id);
  if (events_.failed) events_.failed(id, std::move(error));
}

}  // namespace fieldprint::engine
