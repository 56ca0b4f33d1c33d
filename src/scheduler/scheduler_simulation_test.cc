#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "scheduler/scheduler.h"

namespace fieldprint::scheduler {
namespace {

/// A sequence of the simulated engine, with the blocks counted the plain way.
struct Sequence {
  core::SequenceId id = 0;
  core::TenantId tenant = 0;
  core::BlockLayout layout;
  std::int64_t prompt = 0;
  std::int64_t tokens = 0;
  std::int64_t final_tokens = 0;  ///< ends when so many are computed
  std::int64_t computed = 0;
  bool running = false;
  std::int64_t held = 0;     ///< running: blocks of its own, without pinned ones
  std::int64_t cached = 0;   ///< waiting: its leading full blocks that are still cached, without pinned ones
  std::int64_t swapped = 0;  ///< waiting: those after them that are swapped
};

/// What happened, so that the test can tell that it tested something.
struct Events {
  std::int64_t preemptions = 0;
  std::int64_t evictions = 0;
  std::int64_t swapped = 0;    ///< of these
  std::int64_t came_back = 0;  ///< of those
  std::int64_t lost = 0;       ///< altered, or dropped
  std::int64_t impossible = 0;
  std::int64_t finished = 0;
};

/// Carries decisions out over a naive block count: anchors of one set are pinned from the start and shared,
/// preempted sequences leave their full blocks cached, and whoever needs a block evicts somebody's, which is
/// swapped in most lives, and may be lost there.
class Engine {
 public:
  explicit Engine(std::uint64_t seed) : random_(seed) {
    budgets_.max_batch = 1 + below(6);
    budgets_.step_tokens = budgets_.max_batch + below(200);
    budgets_.prefill_chunk = 1 + below(120);
    budgets_.total_blocks = 6 + below(30);
    anchors_ = core::BlockLayout{below(2) * (1 + below(120))};
    budgets_.pinned_blocks = anchors_.preface_blocks();
    tenants_ = 1 + below(3);
    limits_known_ = seed % 2 == 0;
    swaps_ = seed % 3 != 0;
  }

  const Events& events() const { return events_; }

  /// Runs until every sequence has ended; fails if that takes more steps than it can.
  void run(int sequences) {
    std::int64_t work = 0;
    for (int steps = 0; sequences > 0 || !live_.empty(); ++steps) {
      if (sequences > 0 && (below(4) == 0 || live_.empty())) {
        work += arrive();
        --sequences;
      }
      // Every step that runs takes a token forward; recomputation is bounded by what preemption threw away.
      ASSERT_LT(steps, 100 + 20 * work) << "no progress";
      step();
      if (::testing::Test::HasFatalFailure()) {
        return;
      }
    }
  }

 private:
  std::int64_t below(std::int64_t bound) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(bound));
  }

  std::int64_t capacity() const { return budgets_.total_blocks - budgets_.pinned_blocks; }

  std::int64_t arrive() {
    Sequence s;
    s.id = next_id_++;
    s.tenant = static_cast<core::TenantId>(below(tenants_));
    s.layout = anchors_;
    s.prompt = s.layout.preface_tokens() + 1 + below(64 * 6);
    s.tokens = s.prompt;
    s.final_tokens = s.prompt + below(64 * 5);
    shares_.enter(s.tenant);
    live_.emplace(s.id, s);
    return s.final_tokens;
  }

  std::int64_t own_blocks(const Sequence& s, std::int64_t tokens) const {
    return std::max<std::int64_t>(0, s.layout.blocks_for(tokens) - s.layout.preface_blocks());
  }

  /// Free or cached.
  std::int64_t available() const {
    std::int64_t held = 0;
    for (const auto& [id, s] : live_) {
      held += s.held;
    }
    return capacity() - held;
  }

  std::int64_t free() const {
    std::int64_t blocks = available();
    for (const auto& [id, s] : live_) {
      blocks -= s.cached;
    }
    return blocks;
  }

  /// Half of the engines know how long a sequence may become, the others find out.
  std::int64_t limit(const Sequence& s) const { return limits_known_ ? s.final_tokens : s.tokens; }

  SequenceView view(const Sequence& s) const {
    const std::int64_t prefix = s.layout.preface_tokens() + 64 * (s.cached + s.swapped);
    return {.id = s.id,
            .arrival = s.id,
            .tenant = s.tenant,
            .layout = s.layout,
            .tokens = s.tokens,
            .computed = s.running ? s.computed : prefix,
            .limit_tokens = limit(s),
            .tail_shared = false,
            .reclaimable_blocks = s.held,
            .cached_blocks = s.cached,
            .swapped_blocks = s.swapped,
            .pinned_blocks = s.layout.preface_blocks()};
  }

  void step() {
    std::vector<SequenceView> waiting;
    std::vector<SequenceView> running;
    for (const auto& [id, s] : live_) {
      (s.running ? running : waiting).push_back(view(s));
    }
    budgets_.available_blocks = available();
    const Decision decision = decide(waiting, running, budgets_, shares_);
    check(decision, running);
    carry_out(decision);
  }

  void check(const Decision& decision, const std::vector<SequenceView>& running) {
    ASSERT_EQ(decision.empty(), live_.empty()) << "nothing decided";
    std::int64_t tokens = 0;
    std::set<core::SequenceId> once;
    for (const Run& run : decision.run) {
      tokens += run.tokens;
      ASSERT_GE(run.tokens, 1);
      ASSERT_LE(run.tokens, budgets_.prefill_chunk);
      ASSERT_TRUE(once.insert(run.id).second);
    }
    ASSERT_LE(tokens, budgets_.step_tokens);
    for (const core::SequenceId id : decision.admit) {
      ASSERT_TRUE(once.contains(id));
      ASSERT_FALSE(live_.at(id).running);
      check_order(id, decision);
    }
    const auto oldest = std::min_element(running.begin(), running.end(),
                                         [](const auto& a, const auto& b) { return a.arrival < b.arrival; });
    for (const core::SequenceId id : decision.preempt) {
      ASSERT_TRUE(once.insert(id).second);
      ASSERT_TRUE(live_.at(id).running);
      ASSERT_NE(id, oldest->id);
      for (const SequenceView& other : running) {
        ASSERT_TRUE(other.id < id ||
                    std::count(decision.preempt.begin(), decision.preempt.end(), other.id) == 1)
            << "a younger sequence than " << id << " goes on";
      }
    }
    for (const Impossible& i : decision.impossible) {
      ASSERT_TRUE(once.insert(i.id).second);
      ASSERT_GT(own_blocks(live_.at(i.id), limit(live_.at(i.id))), capacity());
    }
    for (const SequenceView& s : running) {
      const bool decodes = s.tokens - s.computed == 1;
      ASSERT_TRUE(!decodes || once.contains(s.id)) << "a decode was held up";
    }
  }

  /// Nobody of the same tenant who came earlier is still waiting.
  void check_order(core::SequenceId id, const Decision& decision) {
    for (const auto& [other, s] : live_) {
      const bool goes = std::count(decision.admit.begin(), decision.admit.end(), other) == 1 ||
                        std::any_of(decision.impossible.begin(), decision.impossible.end(),
                                    [other = other](const Impossible& i) { return i.id == other; });
      ASSERT_TRUE(other >= id || s.tenant != live_.at(id).tenant || s.running || goes) << "overtaken";
    }
  }

  void end(core::SequenceId id) {
    shares_.leave(live_.at(id).tenant);
    live_.erase(id);
  }

  void carry_out(const Decision& decision) {
    for (const Impossible& i : decision.impossible) {
      end(i.id);
      ++events_.impossible;
    }
    for (const core::SequenceId id : decision.preempt) {
      Sequence& s = live_.at(id);
      s.running = false;
      ++events_.preemptions;
      s.cached = std::max<std::int64_t>(0, s.layout.full_blocks(s.computed) - s.layout.preface_blocks());
      // What is left to compute must be something: the last token's logits are needed.
      s.cached = std::min(s.cached, own_blocks(s, s.tokens - 1));
      s.held = 0;
      s.computed = 0;
    }
    for (const core::SequenceId id : decision.admit) {
      Sequence& s = live_.at(id);
      s.running = true;
      s.computed = s.layout.preface_tokens() + 64 * s.cached;
      s.held = s.cached;
      s.cached = 0;
    }
    for (const core::SequenceId id : decision.admit) bring_back(live_.at(id));
    std::int64_t running = 0;
    for (const auto& [id, s] : live_) {
      running += s.running ? 1 : 0;
    }
    ASSERT_LE(running, budgets_.max_batch);
    for (const Run& run : decision.run) {
      compute(run);
    }
  }

  /// Now and then only a part of it is there yet.
  void bring_back(Sequence& s) {
    const std::int64_t there = below(5) == 0 ? below(s.swapped + 1) : s.swapped;
    events_.came_back += there;
    events_.lost += s.swapped - there;
    s.swapped = 0;
    take(s, there);
    s.computed += 64 * there;
  }

  void take(Sequence& s, std::int64_t blocks) {
    ASSERT_LE(blocks, available()) << "blocks over-committed";
    while (free() < blocks) evict();
    s.held += blocks;
  }

  void compute(const Run& run) {
    Sequence& s = live_.at(run.id);
    ASSERT_TRUE(s.running);
    ASSERT_LE(run.tokens, s.tokens - s.computed);
    take(s, own_blocks(s, s.computed + run.tokens) - s.held);
    s.computed += run.tokens;
    shares_.charge(s.tenant, run.tokens);
    if (s.computed == s.tokens) {
      if (s.tokens >= s.final_tokens) {
        end(s.id);
        ++events_.finished;
      } else {
        ++s.tokens;
      }
    }
  }

  void evict() {
    std::vector<core::SequenceId> owners;
    for (const auto& [id, s] : live_) {
      if (s.cached > 0) {
        owners.push_back(id);
      }
    }
    ASSERT_FALSE(owners.empty());
    ++events_.evictions;
    Sequence& owner = live_.at(owners[static_cast<std::size_t>(below(std::ssize(owners)))]);
    --owner.cached;
    events_.swapped += swaps_ ? 1 : 0;
    owner.swapped += swaps_ ? 1 : 0;
  }

  std::mt19937_64 random_;
  Budgets budgets_;
  core::BlockLayout anchors_;
  std::int64_t tenants_ = 1;
  bool limits_known_ = true;
  bool swaps_ = false;
  Events events_;
  FairShare shares_;
  core::SequenceId next_id_ = 0;
  std::map<core::SequenceId, Sequence> live_;
};

TEST(SchedulerSimulation, KeepsItsGuaranteesAndFinishesEverySequence) {
  Events all;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    Engine engine(seed);
    engine.run(25);
    ASSERT_FALSE(HasFailure());
    all.preemptions += engine.events().preemptions;
    all.evictions += engine.events().evictions;
    all.swapped += engine.events().swapped;
    all.came_back += engine.events().came_back;
    all.lost += engine.events().lost;
    all.impossible += engine.events().impossible;
    all.finished += engine.events().finished;
  }
  EXPECT_GT(all.preemptions, 300);
  EXPECT_GT(all.evictions, 300);
  EXPECT_GT(all.swapped, 300);
  EXPECT_GT(all.came_back, 100);
  EXPECT_GT(all.lost, 20);
  EXPECT_GT(all.impossible, 300);
  EXPECT_GT(all.finished, 3000);
}

/// One tenant floods, the other sends one sequence at a time; both always have work.
TEST(SchedulerSimulation, BackloggedTenantsGetEqualShares) {
  const Budgets budgets{.step_tokens = 64,
                        .prefill_chunk = 32,
                        .max_batch = 4,
                        .total_blocks = 1000,
                        .pinned_blocks = 0,
                        .available_blocks = 1000};
  FairShare shares;
  std::map<core::SequenceId, std::pair<SequenceView, bool>> live;
  core::SequenceId next = 0;
  const auto arrive = [&](core::TenantId tenant, std::int64_t tokens) {
    shares.enter(tenant);
    const SequenceView s{
        .id = next, .arrival = next, .tenant = tenant, .tokens = tokens, .limit_tokens = tokens};
    live[next++] = {s, false};
  };
  for (int i = 0; i < 200; ++i) {
    arrive(1, 500);
  }
  arrive(2, 90);
  std::map<core::TenantId, std::int64_t> given;
  for (int step = 0; step < 400; ++step) {
    std::vector<SequenceView> waiting;
    std::vector<SequenceView> running;
    for (const auto& [id, s] : live) {
      (s.second ? running : waiting).push_back(s.first);
    }
    const Decision decision = decide(waiting, running, budgets, shares);
    for (const core::SequenceId id : decision.admit) {
      live[id].second = true;
    }
    for (const scheduler::Run& run : decision.run) {
      SequenceView& s = live[run.id].first;
      given[s.tenant] += run.tokens;
      shares.charge(s.tenant, run.tokens);
      s.computed += run.tokens;
      if (s.computed == s.tokens) {
        if (s.tenant == 2) {
          arrive(2, 90);
        }
        shares.leave(s.tenant);
        live.erase(run.id);
      }
    }
  }
  const double ratio = static_cast<double>(given[2]) / static_cast<double>(given[1]);
  EXPECT_GT(ratio, 0.8);
  EXPECT_LT(ratio, 1.25);
}

}  // namespace
}  // namespace fieldprint::scheduler
