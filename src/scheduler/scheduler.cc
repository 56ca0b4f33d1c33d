#include "scheduler/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <tuple>

#include "base/check.h"

namespace fieldprint::scheduler {
namespace {

std::int64_t pending(const SequenceView& s) { return s.tokens - s.computed; }

/// Blocks that the next `count` tokens take from the available ones.
std::int64_t claim(const SequenceView& s, std::int64_t count) {
  return s.layout.blocks_for(s.computed + count) - s.layout.blocks_for(s.computed) + (s.tail_shared ? 1 : 0);
}

/// Of the next token, if it may be computed now.
std::int64_t next_claim(const SequenceView& s) { return s.ready ? claim(s, 1) : 0; }

/// Blocks that its admission takes from the available ones for the prefix that it finds.
std::int64_t prefix_claim(const SequenceView& s) { return s.cached_blocks + s.swapped_blocks; }

/// The most next tokens, at least 0, whose claim is at most `blocks`.
std::int64_t tokens_in(const SequenceView& s, std::int64_t blocks) {
  const std::int64_t reached = s.layout.blocks_for(s.computed) + blocks - (s.tail_shared ? 1 : 0);
  return reached <= 0 ? 0 : std::max<std::int64_t>(0, s.layout.block_end(reached - 1) - s.computed);
}

bool older(const SequenceView* a, const SequenceView* b) {
  return std::tie(a->arrival, a->id) < std::tie(b->arrival, b->id);
}

/// One decision in the making. The steps of decide() in their order.
class Planner {
 public:
  Planner(const Budgets& budgets, const FairShare& shares)
      : budgets_(budgets),
        shares_(shares),
        tokens_left_(budgets.step_tokens),
        free_(budgets.available_blocks) {}

  /// Rule 1. `possible` comes back oldest first.
  void reject_impossible(std::span<const SequenceView> views, std::vector<const SequenceView*>& possible) {
    const std::int64_t capacity = budgets_.total_blocks - budgets_.pinned_blocks;
    for (const SequenceView& s : views) {
      CHECK(s.computed >= 0 && s.computed < s.tokens, "sequence {}: {} of {} tokens computed", s.id,
            s.computed, s.tokens);
      const std::int64_t needed = s.layout.blocks_for(std::max(s.limit_tokens, s.tokens)) - s.pinned_blocks;
      if (needed > capacity) {
        decision_.impossible.push_back({s.id, needed, capacity});
      } else {
        possible.push_back(&s);
      }
    }
    std::sort(possible.begin(), possible.end(), older);
  }

  /// Rule 2. Afterwards free_ is what remains beside one more token of every sequence in `running`.
  void preempt(std::vector<const SequenceView*>& running) {
    std::int64_t claims = 0;
    for (const SequenceView* s : running) {
      claims += next_claim(*s);
    }
    while (claims > free_ && running.size() > 1) {
      const SequenceView& victim = *running.back();
      decision_.preempt.push_back(victim.id);
      claims -= next_claim(victim);
      free_ += victim.reclaimable_blocks;
      running.pop_back();
    }
    if (claims > free_) {
      // What the preempted ones share with each other comes free only when they are gone.
      running.clear();
      claims = 0;
    }
    free_ -= claims;
  }

  /// Rule 3; queues the prefills.
  void run_decodes(const std::vector<const SequenceView*>& running) {
    for (const SequenceView* s : running) {
      running_count_ += 1;
      promised_ += claim(*s, pending(*s)) - next_claim(*s);
      if (!s->ready) {
        continue;
      }
      if (pending(*s) == 1) {
        grant(*s, 1);
      } else {
        queues_[s->tenant].push_back({s, false});
      }
    }
  }

  /// Rules 4 and 5; nobody is admitted unless every running sequence goes on.
  void prefill(const std::vector<const SequenceView*>& waiting, bool admitting) {
    if (admitting) {
      for (const SequenceView* s : waiting) {
        queues_[s->tenant].push_back({s, true});
      }
    }
    while (tokens_left_ > 0 && !queues_.empty()) {
      const auto queue = next_queue();
      const auto [s, is_waiting] = queue->second.front();
      queue->second.pop_front();
      if (!is_waiting) {
        run_chunk(*s);
      } else if (admitting && fits(*s)) {
        admit(*s);
      } else {
        admitting = false;
        queue->second.clear();
      }
      if (queue->second.empty()) {
        queues_.erase(queue);
      }
    }
  }

  Decision take(std::size_t running_views) {
    check(running_views);
    return std::move(decision_);
  }

 private:
  struct Candidate {
    const SequenceView* sequence;
    bool waiting;
  };
  using Queues = std::map<core::TenantId, std::deque<Candidate>>;

  Queues::iterator next_queue() {
    const auto rank = [this](const Queues::value_type& q) {
      return std::make_tuple(shares_.served(q.first) + granted_[q.first], q.second.front().sequence->arrival);
    };
    auto best = queues_.begin();
    for (auto queue = std::next(best); queue != queues_.end(); ++queue) {
      if (rank(*queue) < rank(*best)) {
        best = queue;
      }
    }
    return best;
  }

  void grant(const SequenceView& s, std::int64_t tokens) {
    decision_.run.push_back({s.id, tokens});
    granted_[s.tenant] += tokens;
    tokens_left_ -= tokens;
  }

  /// Its first token's blocks are taken from free_ already.
  void run_chunk(const SequenceView& s) {
    const std::int64_t own = claim(s, 1);
    const std::int64_t tokens =
        std::min({pending(s), budgets_.prefill_chunk, tokens_left_, tokens_in(s, free_ + own)});
    CHECK(tokens >= 1, "sequence {} was kept without room for a token", s.id);
    const std::int64_t more = claim(s, tokens) - own;
    free_ -= more;
    promised_ -= more;
    grant(s, tokens);
  }

  /// Its whole prompt, beside the rest of the running prompts and a spare block for each running sequence.
  bool fits(const SequenceView& s) const {
    return running_count_ < budgets_.max_batch &&
           claim(s, pending(s)) + prefix_claim(s) + promised_ + running_count_ <= free_;
  }

  void admit(const SequenceView& s) {
    decision_.admit.push_back(s.id);
    running_count_ += 1;
    free_ -= prefix_claim(s) + claim(s, 1);
    promised_ += claim(s, pending(s)) - claim(s, 1);
    run_chunk(s);
  }

  void check(std::size_t running_views) const {
    CHECK(tokens_left_ >= 0 && free_ >= 0 && promised_ >= 0, "tokens {}, blocks {}, promised {}",
          tokens_left_, free_, promised_);
    CHECK(static_cast<std::int64_t>(running_views + decision_.admit.size() - decision_.preempt.size()) <=
              budgets_.max_batch,
          "{} running, {} admitted", running_views, decision_.admit.size());
  }

  const Budgets& budgets_;
  const FairShare& shares_;
  Decision decision_;
  std::int64_t tokens_left_;
  std::int64_t free_;          ///< blocks beside what is granted and kept
  std::int64_t promised_ = 0;  ///< blocks that running prefills still need for their prompts, beyond those
  std::int64_t running_count_ = 0;  ///< kept and admitted
  std::map<core::TenantId, std::int64_t> granted_;
  Queues queues_;  ///< none empty
};

}  // namespace

std::string Impossible::message() const {
  return fmt::format(
      "the sequence needs {} KV blocks of {} tokens, and only {} are not pinned: use more KV blocks, or ask "
      "for a shorter prompt or fewer tokens",
      blocks_needed, core::kBlockTokens, blocks_possible);
}

Decision decide(std::span<const SequenceView> waiting, std::span<const SequenceView> running,
                const Budgets& budgets, const FairShare& shares) {
  CHECK(budgets.max_batch >= 1 && budgets.prefill_chunk >= 1 && budgets.step_tokens >= budgets.max_batch,
        "budgets: batch {}, chunk {}, step {}", budgets.max_batch, budgets.prefill_chunk,
        budgets.step_tokens);
  CHECK(static_cast<std::int64_t>(running.size()) <= budgets.max_batch, "{} running", running.size());
  Planner planner(budgets, shares);
  std::vector<const SequenceView*> kept;
  std::vector<const SequenceView*> queued;
  planner.reject_impossible(running, kept);
  planner.reject_impossible(waiting, queued);
  planner.preempt(kept);
  planner.run_decodes(kept);
  planner.prefill(queued, kept.size() == running.size());
  return planner.take(running.size());
}

}  // namespace fieldprint::scheduler
