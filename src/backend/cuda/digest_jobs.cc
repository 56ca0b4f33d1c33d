#include "backend/cuda/digest_jobs.h"

#include <cstring>
#include <utility>

#include "backend/cuda/digest.h"

namespace fieldprint::backend::cuda {

class DigestJobs::Job final : public PendingDigests {
 public:
  Job(DigestJobs& jobs, std::unique_ptr<Room> room, std::size_t count)
      : jobs_(jobs), room_(std::move(room)), count_(count) {}
  ~Job() override {
    room_->done.wait();
    jobs_.idle_.push_back(std::move(room_));
  }

  bool ready() override { return room_->done.passed(); }
  std::span<const Digest> wait() override {
    room_->done.wait();
    return {reinterpret_cast<const Digest*>(room_->digests.data()), count_};
  }
  std::chrono::nanoseconds took() override {
    room_->done.wait();
    return room_->done.since(room_->begun);
  }

 private:
  DigestJobs& jobs_;
  std::unique_ptr<Room> room_;
  std::size_t count_;
};

std::unique_ptr<PendingDigests> DigestJobs::begin(const PageDigestArgs& args, Stream main) {
  static_assert(sizeof(Digest) == 32);
  const std::int64_t count = static_cast<std::int64_t>(args.blocks.size()) * args.pages;
  std::unique_ptr<Room> room;
  if (idle_.empty()) {
    room = std::make_unique<Room>();
  } else {
    room = std::move(idle_.back());
    idle_.pop_back();
  }
  pages_written_.record(main);
  pages_written_.hold(stream_);
  room->begun.record(stream_);
  if (count > 0) {
    room->blocks.reserve(static_cast<std::int64_t>(args.blocks.size_bytes()));
    room->digests.reserve(count * 32);
    std::memcpy(room->blocks.data(), args.blocks.data(), args.blocks.size_bytes());
    page_digests({args.pool, args.block_stride, args.page_bytes, args.pages,
                  reinterpret_cast<const std::int32_t*>(room->blocks.data()), count, room->digests.data()},
                 stream_);
  }
  room->done.record(stream_);
  return std::make_unique<Job>(*this, std::move(room), static_cast<std::size_t>(count));
}

}  // namespace fieldprint::backend::cuda
