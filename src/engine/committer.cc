#include "engine/committer.h"

#include <algorithm>
#include <ctime>
#include <random>
#include <utility>

#include "backend/select.h"
#include "exact/format.h"

namespace fieldprint::engine {
namespace {

// An engine that waits looks for revocations by other processes as often as this.
constexpr std::chrono::milliseconds kEngineWait{5};
// A ledger that has not answered for so long, without an error, is as good as one that fails.
constexpr std::chrono::seconds kSlow{1};

std::int64_t now() { return static_cast<std::int64_t>(std::time(nullptr)); }

Digest random_salt() {
  std::random_device random;
  Digest salt;
  for (std::uint8_t& byte : salt) byte = static_cast<std::uint8_t>(random());
  return salt;
}

}  // namespace

Result<std::unique_ptr<Committer>> Committer::create(store::SignedLog& log, AnchorsInForce& anchors,
                                                     const weights::ModelFile& file, std::string_view backend,
                                                     const Options& options) {
  if (options.run_ahead < 1)
    return caller_error("a trajectory must be allowed one commit ahead of validation");
  if (!(options.reexecute_share >= 0 && options.reexecute_share <= 1)) {
    return caller_error(fmt::format("the share of commits computed again is {}, but must be from 0 to 1",
                                    options.reexecute_share));
  }
  std::unique_ptr<Committer> committer(new Committer(log, anchors, file, options));
  if (options.reexecute_share > 0) {
    auto other = backend::select_backend(other_backend(backend), 1);
    if (!other) return other.error();
    committer->other_backend_ = (*other)->name();
    committer->reexecutor_ = std::make_unique<Reexecutor>(
        file, std::move(*other),
        [it = committer.get()](Commit commit) { return it->wants_reexecution(commit); },
        [it = committer.get()](Commit commit, const Status& outcome) {
          it->note_reexecuted(commit, outcome);
        });
  }
  committer->thread_ = std::thread([it = committer.get()] { it->run(); });
  return committer;
}

Committer::Committer(store::SignedLog& log, AnchorsInForce& anchors, const weights::ModelFile& file,
                     const Options& options)
    : log_(log),
      anchors_(anchors),
      file_(file),
      options_(options),
      protocol_(options.run_ahead),
      validator_(options.reexecute_share, options.salt.value_or(random_salt())) {}

Committer::~Committer() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  reexecutor_.reset();
}

Status Committer::open(core::SequenceId id, const core::Request& request) {
  if (!request.anchors.empty()) {
    if (Status status = anchors_.await_fresh(bounds::kMaxOpenWait); !status) return status.error();
  }
  commit::Origin origin{file_.digest(), exact::kCanonVersion, {}};
  // Admitted by the ledger at one size, which another thread may have taken in more of meanwhile.
  do {
    origin.anchors.clear();
    origin.anchors_at = request.anchors.empty() ? 0 : anchors_.size();
    for (const Digest& anchor : request.anchors) {
      auto admitted = anchors_.admit(anchor, {request.tenant_name, file_.digest(), now()});
      if (!admitted) return admitted.error();
      origin.anchors.push_back(std::move(*admitted));
    }
  } while (!request.anchors.empty() && anchors_.size() != origin.anchors_at);
  const std::lock_guard lock(mutex_);
  if (failure_) return *failure_;
  if (!protocol_.open(id, request.anchors)) return refuted("an anchor of the request was revoked");
  Life& life = lives_[id];
  life.anchors = request.anchors;
  for (const Digest& anchor : life.anchors) ++bound_[anchor];
  life.impatient = request.hold_text;
  life.chain = std::make_shared<Chain>(std::move(origin), request);
  life.news.id = id;
  return {};
}

void Committer::seal_prompt(core::SequenceId id, std::vector<core::BlockRecord> blocks) {
  seal(id, SealedPrompt{std::move(blocks)});
}

void Committer::seal_segment(core::SequenceId id, std::span<const core::OutputToken> tokens,
                             const core::BlockRecord& block) {
  SealedSegment segment{.tokens = {}, .block = block};
  for (const core::OutputToken& token : tokens) segment.tokens.push_back(token.token);
  seal(id, std::move(segment));
}

void Committer::seal_answer(core::SequenceId id, const core::Answer& answer) {
  seal(id, SealedAnswer{answer});
}

void Committer::seal(core::SequenceId id, Sealed sealed) {
  {
    const std::lock_guard lock(mutex_);
    Life& life = lives_.at(id);
    if (life.stopped) return;
    life.waiting.push_back(std::move(sealed));
    advance(id, life);
  }
  wake_.notify_one();
}

/// Lets what waits go on as far as the protocol allows.
void Committer::advance(core::SequenceId id, Life& life) {
  if (!protocol_.known(id)) return;
  while (!life.waiting.empty() && protocol_.may_run(id)) {
    queue_.push_back({protocol_.seal(id), life.chain, std::move(life.waiting.front())});
    life.waiting.pop_front();
  }
  if (life.closed) return;
  for (Gate& gate : life.gates) {
    if (!gate.requested && protocol_.sealed(id) >= gate.needs) gate.requested = protocol_.request(id);
  }
  if (!life.ended || !life.waiting.empty()) return;
  life.closed = true;
  protocol_.close(id);
}

void Committer::end(core::SequenceId id) {
  const std::lock_guard lock(mutex_);
  const auto found = lives_.find(id);
  if (found == lives_.end()) return;
  found->second.ended = true;
  advance(id, found->second);
  forget_if_over(id);
}

void Committer::forget_if_over(core::SequenceId id) {
  const Life& life = lives_.at(id);
  if (!life.ended || protocol_.known(id) || !life.gates.empty()) return;
  for (const Digest& anchor : life.anchors) {
    if (--bound_[anchor] == 0) bound_.erase(anchor);
  }
  validator_.forget(id);
  told_next_.erase(id);
  lives_.erase(id);
}

bool Committer::may_run(core::SequenceId id) const {
  const std::lock_guard lock(mutex_);
  const Life& life = lives_.at(id);
  const bool unread = stale_ && !life.anchors.empty();
  return !unread && !life.stopped && life.waiting.empty() && protocol_.may_run(id);
}

void Committer::pages_checked(core::SequenceId id, std::int32_t commits, std::int64_t blocks) {
  {
    const std::lock_guard lock(mutex_);
    validator_.pages_checked(id, commits, blocks);
    note_due();
  }
  wake_.notify_one();
}

void Committer::refute(core::SequenceId id, std::int32_t commit, const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    refute_commit({id, commit}, reason);
  }
  wake_.notify_one();
}

void Committer::refute_commit(Commit commit, const std::string& reason) {
  const auto found = lives_.find(commit.trajectory);
  if (found == lives_.end() || !protocol_.known(commit.trajectory)) return;
  Life& life = found->second;
  // Of commits that wait to be sealed, those before it go on.
  const std::int32_t sealed = protocol_.sealed(commit.trajectory);
  const auto kept = static_cast<std::size_t>(std::max(commit.number - sealed, 0));
  if (life.waiting.size() > kept) life.waiting.resize(kept);
  if (commit.number < sealed) {
    if (protocol_.state(commit) == commit::CommitState::kRefuted) return;
    protocol_.refute(commit, reason);
  }
  stop({commit, sealed}, life, refuted(reason));
}

/// Nothing of the trajectory goes on from this commit.
void Committer::stop(const Cut& cut, Life& life, Error error) {
  const Commit first = cut.first;
  const std::int32_t bad_from = std::max(first.number, cut.judged);
  // What stops again, from an earlier commit, has had verdicts of the later ones.
  if (const std::int32_t end = life.bad_from.value_or(cut.sealed); bad_from < end) {
    refusals_.push_back({{first.trajectory, bad_from}, end, life.chain, error.message});
    life.bad_from = bad_from;
    wake_.notify_one();
  }
  validator_.cut(first);
  if (life.stopped) return;
  life.stopped = true;
  life.news.stopped = std::move(error);
  told_next_.insert(first.trajectory);
  changed_.notify_all();
}

bool Committer::Waiting::out(Clock::time_point now) const { return error || now - since >= kSlow; }

/// What the engine finds of the ledger in this step, and whether that has lasted too long.
void Committer::heed_ledger(bool fresh) {
  const auto now = Clock::now();
  const std::uint64_t before = std::exchange(reads_, anchors_.reads());
  if (fresh) stale_.reset();
  if (!fresh && (!stale_ || reads_ != before)) stale_ = {.since = now};
  if (const Status status = anchors_.readable(); stale_) {
    stale_->error = status ? std::nullopt : std::optional(status.error());
  }
  const bool too_long = entering_ && entering_->out(now) && now - entering_->since >= options_.patience;
  if (!too_long || failure_) return;
  stop_all(entering_->error.value_or(
      environment_error(fmt::format("the ledger {} does not answer", log_.store().name()))));
}

std::optional<LedgerOutage> Committer::outage() const {
  const auto now = Clock::now();
  for (const auto& [waiting, what] : {std::pair(&entering_, "takes"), std::pair(&stale_, "gives")}) {
    if (!*waiting || !(*waiting)->out(now)) continue;
    const std::optional<Error>& error = (*waiting)->error;
    return LedgerOutage{
        error ? error->message : fmt::format("the ledger {} {} nothing", log_.store().name(), what),
        std::chrono::duration_cast<std::chrono::milliseconds>(now - (*waiting)->since), options_.patience};
  }
  return std::nullopt;
}

/// Whether what is bound to the anchor may go on; as far as the ledger was read, as long as there is
/// patience.
Status Committer::standing(const Digest& anchor) const {
  Status status = anchors_.in_force(anchor, now());
  if (!status && status.error().kind != ErrorKind::kEnvironment) return status;
  const auto time = Clock::now();
  if (!stale_ || !stale_->out(time) || time - stale_->since < options_.patience) return {};
  return status ? Status(environment_error("the ledger could not be read: nobody knows what was revoked"))
                : status;
}

/// Ends what is bound to an anchor that is not in force now. Only a revocation is remembered: a clock may be
/// wrong and a ledger unreadable for some time.
void Committer::heed_anchors() {
  for (const auto& [anchor, bindings] : bound_) {
    if (protocol_.revoked(anchor)) continue;
    const Status status = standing(anchor);
    if (status) continue;
    std::vector<Cut> concerned;
    for (auto& [id, life] : lives_) {
      const bool bound = std::ranges::find(life.anchors, anchor) != life.anchors.end();
      if (life.unbound || !bound || !protocol_.known(id)) continue;
      life.unbound = true;
      concerned.push_back({{id, protocol_.validated(id)}, protocol_.sealed(id)});
    }
    if (anchors_.revoked(anchor)) {
      protocol_.revoke(anchor, status.error().message);
    } else {
      protocol_.suspend(anchor, status.error().message);
    }
    for (const Cut& cut : concerned) {
      Life& life = lives_.at(cut.first.trajectory);
      life.waiting.clear();
      stop(cut, life, refuted(status.error().message));
      advance(cut.first.trajectory, life);
    }
  }
}

EffectId Committer::request(core::SequenceId id, std::int32_t commits) {
  EffectId effect = 0;
  {
    const std::lock_guard lock(mutex_);
    Life& life = lives_.at(id);
    effect = ++effects_;
    life.gates.push_back({effect, commits});
    advance(id, life);
  }
  // It may make verdicts urgent that were due.
  wake_.notify_one();
  return effect;
}

News Committer::news() {
  const bool fresh = anchors_.fresh();
  const std::lock_guard lock(mutex_);
  heed_ledger(fresh);
  heed_anchors();
  News news{.commits = {}, .effects = {}, .outage = outage()};
  take_effects(news);
  for (const core::SequenceId id : std::exchange(told_next_, {})) {
    const auto found = lives_.find(id);
    if (found == lives_.end() || found->second.ended) continue;
    CommitNews& told = found->second.news;
    told.validated = protocol_.validated(id);
    news.commits.push_back(told);
    told.receipt.reset();
    told.stopped.reset();
  }
  return news;
}

void Committer::take_effects(News& news) {
  std::vector<core::SequenceId> over;
  for (auto& [id, life] : lives_) {
    // What is not read yet may be a revocation, also of what stopped for another reason.
    const bool unread = stale_ && !life.anchors.empty() && !life.unbound;
    std::erase_if(life.gates, [&, &id = id, &life = life](const Gate& gate) {
      std::string reason = protocol_.known(id) ? protocol_.reason(id) : std::string();
      if (gate.requested) {
        if (unread) return false;
        const auto release = protocol_.take(*gate.requested);
        if (release == commit::Protocol::Release::kPending) return false;
        const bool released = release == commit::Protocol::Release::kReleased;
        news.effects.push_back({gate.effect, {released, released ? std::string() : std::move(reason)}});
        return true;
      }
      // What it needs is not sealed yet; will it ever be?
      if (!life.stopped && !life.closed) return false;
      if (reason.empty()) reason = "the request ended before what the effect depends on was committed";
      news.effects.push_back({gate.effect, {false, std::move(reason)}});
      return true;
    });
    over.push_back(id);
  }
  for (const core::SequenceId id : over) forget_if_over(id);
}

void Committer::wait() {
  std::unique_lock lock(mutex_);
  if (stale_ && !bound_.empty() && !stale_->error) {
    lock.unlock();
    (void)anchors_.await_fresh(kEngineWait);
    return;
  }
  engine_waits_ = true;
  wake_.notify_one();
  changed_.wait_for(lock, kEngineWait, [&] { return !told_next_.empty(); });
  engine_waits_ = false;
}

}  // namespace fieldprint::engine
