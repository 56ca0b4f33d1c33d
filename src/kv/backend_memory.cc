#include "kv/backend_memory.h"

namespace fieldprint::kv {
namespace {

class BackendMemory final : public BlockMemory {
 public:
  BackendMemory(backend::Backend& backend, std::int64_t bytes)
      : backend_(backend), base_(backend.allocate(bytes)) {}
  ~BackendMemory() override { backend_.release(base_); }
  BackendMemory(const BackendMemory&) = delete;
  BackendMemory& operator=(const BackendMemory&) = delete;

  std::uint8_t* base() const override { return base_; }
  void zero(std::int64_t offset, std::int64_t row_bytes, std::int64_t stride, std::int64_t rows) override {
    backend_.clear_rows(base_ + offset, row_bytes, stride, rows);
  }
  void copy(std::int64_t from, std::int64_t to, std::int64_t bytes) override {
    backend_.copy(base_ + to, base_ + from, bytes);
  }
  void download(void* host, std::int64_t from, std::int64_t bytes) const override {
    backend_.download(host, base_ + from, bytes);
  }
  void upload(std::int64_t to, const void* host, std::int64_t bytes) override {
    backend_.upload(base_ + to, host, bytes);
  }

 private:
  backend::Backend& backend_;
  std::uint8_t* base_;
};

}  // namespace

std::unique_ptr<BlockMemory> backend_memory(backend::Backend& backend, std::int64_t bytes) {
  return std::make_unique<BackendMemory>(backend, bytes);
}

PageHasher backend_page_hasher(backend::Backend& backend, const BlockPool& pool) {
  return [&backend, &pool](std::span<const BlockId> blocks) {
    const KvGeometry& geometry = pool.geometry();
    return backend.page_digests(
        {pool.base(), geometry.block_bytes(), geometry.page_bytes(), geometry.pages_per_block(), blocks});
  };
}

}  // namespace fieldprint::kv
