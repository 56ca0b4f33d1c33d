#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/plan.h"
#include "backend/cuda/transfer.h"
#include "backend/ops.h"

namespace fieldprint::backend::cuda {

/// The attention of a step: its sequences, a plan for each kind of layer, and the workspace. Device memory is
/// kept from step to step and grows as needed.
class AttentionStep {
 public:
  AttentionStep(Transfer& transfer, Stream stream);

  /// A new step. The sequences' block tables must stay as they are until the next.
  void begin(std::span<const AttentionSequence> sequences);
  /// The attention of one layer; the first layer of a kind plans for all of them.
  void run(const AttentionArgs& args);
  /// Plans now for every kind of layer that was ever seen, so that run() enqueues kernels alone.
  void prepare();
  /// All that launches are made from besides the arguments of run(): where plans and workspace lie, and what
  /// of the plans' sizes the host decides by. A launch that was recorded holds while this stays the same.
  std::vector<std::uint64_t> launch_key() const;

 private:
  struct Plan {
    PlanShape shape;
    GrowingMemory buffer;
    DevicePlan on_device;
    bool current;  ///< made for this step
  };

  Plan& plan_for(const AttentionArgs& args);
  void refresh(Plan& plan);

  Transfer& transfer_;
  Stream stream_;
  std::int32_t multiprocessors_;
  std::vector<AttentionSequence> sequences_;
  std::deque<Plan> plans_;  ///< one for each shape and window that was ever seen
  GrowingMemory workspace_;
};

}  // namespace fieldprint::backend::cuda
