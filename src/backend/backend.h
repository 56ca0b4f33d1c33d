#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/ops.h"
#include "base/sha256.h"

namespace fieldprint::backend {

/// Pages of blocks to hash where they live.
struct PageDigestArgs {
  const std::uint8_t* pool;
  std::int64_t block_stride;
  std::int64_t page_bytes;
  std::int64_t pages;  ///< per block, contiguous from the block's start
  std::span<const std::int32_t> blocks;
};

/// What a device keeps of operations that repeat; of no meaning to anyone else.
class Recording {
 public:
  virtual ~Recording() = default;
};

/// Page digests on their way.
class PendingDigests {
 public:
  virtual ~PendingDigests() = default;
  /// Whether they are there.
  virtual bool ready() = 0;
  /// [blocks][pages], in host memory, as long as this lives. Waits until they are there.
  virtual std::span<const Digest> wait() = 0;
  /// For how long they kept the device busy, beside other work or not; of a CPU the caller. Waits too.
  virtual std::chrono::nanoseconds took() = 0;
};

/// Page digests that are there already.
class ReadyDigests final : public PendingDigests {
 public:
  ReadyDigests(std::vector<Digest> digests, std::chrono::nanoseconds took)
      : digests_(std::move(digests)), took_(took) {}
  bool ready() override { return true; }
  std::span<const Digest> wait() override { return digests_; }
  std::chrono::nanoseconds took() override { return took_; }

 private:
  std::vector<Digest> digests_;
  std::chrono::nanoseconds took_;
};

/// The one interface between the model and a device. Operations are ordered; results may be read after
/// synchronize(). Every member is implemented by every backend, and every backend gives the same bits.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;

  /// 64-byte aligned device memory, not initialised and not touched; never null: throws std::bad_alloc.
  virtual std::uint8_t* allocate(std::int64_t bytes) = 0;
  virtual void release(std::uint8_t* memory) = 0;
  /// Where the device reads `bytes` bytes of constant host data: the same address, or a copy that lives as
  /// long as the backend.
  virtual const void* adopt(const void* host, std::int64_t bytes) = 0;
  /// The same for a weight, whose data and scales may get another layout on the way: only linear() and
  /// embed() of this backend can read the result. Weights of equal `data` share one copy.
  virtual PackedWeight adopt(const PackedWeight& weight) = 0;
  virtual void upload(void* device, const void* host, std::int64_t bytes) = 0;
  virtual void download(void* host, const void* device, std::int64_t bytes) = 0;
  /// Device memory as the host may read it: the memory itself, or a copy that is put into `staging`. Valid
  /// until either changes.
  virtual const void* host_view(const void* device, std::int64_t bytes,
                                std::vector<std::uint8_t>& staging) = 0;
  virtual void copy(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void clear(void* device, std::int64_t bytes) = 0;
  /// Clears `rows` rows of `row_bytes` bytes, `stride` bytes apart.
  virtual void clear_rows(void* device, std::int64_t row_bytes, std::int64_t stride, std::int64_t rows) = 0;
  virtual void synchronize() = 0;
  /// Calls `operations`, which enqueues work, or replays what an earlier call with the same `recording`
  /// enqueued. Whoever owns the recording sees to it that every argument of every operation is the same as
  /// then, what they point to aside; the plan of attention may differ, its number of queries may not. No
  /// transfers.
  virtual void repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& operations) = 0;

  virtual void embed(const EmbedArgs& args, std::int32_t tokens) = 0;
  virtual void norm_quantize(const NormQuantizeArgs& args, std::int32_t tokens) = 0;
  virtual void norm_add(const NormAddArgs& args, std::int32_t tokens) = 0;
  virtual void quantize(const QuantizeArgs& args, std::int32_t tokens) = 0;
  virtual void gated_quantize(const GatedQuantizeArgs& args, std::int32_t tokens) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void rope_append(const RopeAppendArgs& args, std::int32_t tokens) = 0;
  /// Says what the attention() calls that follow work on, until the next call. The backend cuts the work into
  /// items here, once for all layers; the block tables must stay as they are.
  virtual void plan_attention(std::span<const AttentionSequence> sequences, std::int32_t heads,
                              std::int32_t kv_heads) = 0;
  /// `args` without sequences and items, which the plan has.
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void probabilities(const ProbabilitiesArgs& args, std::int32_t rows) = 0;
  /// The token that follows each row of logits, chosen where the logits are.
  virtual void choose(const ChooseArgs& args, std::int32_t rows) = 0;
  /// Begins SHA-256 of each page as it is after what was enqueued so far, beside what is enqueued later. Of a
  /// page that this changes before the digests are there, the digest is of neither.
  virtual std::unique_ptr<PendingDigests> page_digests(const PageDigestArgs& args) = 0;
  /// Pages that are hashed side by side: fewer take as long.
  virtual std::int64_t digests_at_once() const = 0;
};

}  // namespace fieldprint::backend
