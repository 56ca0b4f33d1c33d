#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "backend/backend.h"
#include "commit/protocol.h"
#include "engine/chain.h"
#include "weights/model_file.h"

namespace fieldprint::engine {

/// The CPU backend that shares the least with the one called `name`: sampled commits are computed again
/// there.
std::string other_backend(std::string_view name);

/// Refuted, with the first difference, if the model gives anything else for the history than it states.
Status compute_again(const History& history, const weights::ModelFile& file, backend::Backend& backend);

/// Computes sampled histories again, one after the other, in a thread that leaves the processor to others.
class Reexecutor {
 public:
  /// Called from that thread. An error that is not `refuted` says that nothing could be found out.
  using Done = std::function<void(commit::Protocol::Commit, const Status&)>;

  /// Called from that thread before a history is computed; without, its outcome is an error that is not
  /// `refuted`.
  using Wanted = std::function<bool(commit::Protocol::Commit)>;

  Reexecutor(const weights::ModelFile& file, std::unique_ptr<backend::Backend> backend, Wanted wanted,
             Done done);
  /// Waits for the history under way and leaves the others.
  ~Reexecutor();
  Reexecutor(const Reexecutor&) = delete;
  Reexecutor& operator=(const Reexecutor&) = delete;

  /// Histories that were added and have no outcome yet.
  std::int64_t outstanding() const;
  void add(commit::Protocol::Commit commit, History history);

 private:
  void run();

  struct Job {
    commit::Protocol::Commit commit;
    History history;
  };
  const weights::ModelFile& file_;
  std::unique_ptr<backend::Backend> backend_;
  Wanted wanted_;
  Done done_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;  // guarded by mutex_, as are the next two
  std::int64_t outstanding_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace fieldprint::engine
