#include "engine/reexecutor.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "backend/select.h"
#include "verify/replay.h"

namespace fieldprint::engine {
namespace {

constexpr int kLowestPriority = 19;

/// Of the calling thread: Linux keeps a nice value for each. A refusal changes how fast others run, no
/// result.
void give_way() {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), kLowestPriority);
}

}  // namespace

std::string other_backend(std::string_view name) {
  // amx shares all kernels but the linear ones with avx512.
  const bool wide = name == "avx512" || name == "amx";
  for (const std::string& other : backend::available_backends()) {
    if (other == "cuda" || other == name || (wide && (other == "avx512" || other == "amx"))) continue;
    return other;
  }
  return "scalar";
}

Status compute_again(const History& history, const weights::ModelFile& file, backend::Backend& backend) {
  const commit::Body& body = history.body;
  auto replayed = verify::Replay(body, file, backend).run({});
  if (!replayed) return replayed.error();
  const auto stated = body.output_tokens.begin();
  const auto end = stated + static_cast<std::ptrdiff_t>(history.outputs);
  const auto [other, given] = std::mismatch(stated, end, replayed->output.begin());
  if (other != end) {
    return refuted(fmt::format("computed again by {}, output token {} is {} in place of {}", backend.name(),
                               other - stated, *given, *other));
  }
  for (std::size_t i = 0; i < body.kv_blocks.size(); ++i) {
    if (body.kv_blocks[i] == replayed->blocks[i]) continue;
    return refuted(fmt::format("computed again by {}, the KV of block {} is another", backend.name(), i));
  }
  if (history.has_mass && body.anchor_mass != replayed->anchor_mass) {
    return refuted(fmt::format("computed again by {}, the anchors' mass is another", backend.name()));
  }
  return {};
}

Reexecutor::Reexecutor(const weights::ModelFile& file, std::unique_ptr<backend::Backend> backend,
                       Wanted wanted, Done done)
    : file_(file),
      backend_(std::move(backend)),
      wanted_(std::move(wanted)),
      done_(std::move(done)),
      thread_([this] { run(); }) {}

Reexecutor::~Reexecutor() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::int64_t Reexecutor::outstanding() const {
  const std::lock_guard lock(mutex_);
  return outstanding_;
}

void Reexecutor::add(commit::Protocol::Commit commit, History history) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({commit, std::move(history)});
    ++outstanding_;
  }
  wake_.notify_one();
}

void Reexecutor::run() {
  give_way();
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    const Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    done_(job.commit, wanted_(job.commit) ? compute_again(job.history, file_, *backend_)
                                          : environment_error("nobody waits for the commit any more"));
    lock.lock();
    --outstanding_;
  }
}

}  // namespace fieldprint::engine
