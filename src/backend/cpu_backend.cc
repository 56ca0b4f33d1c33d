#include "backend/cpu_backend.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

#include "backend/attention_plan.h"
#include "backend/instruction_sets.h"
#include "backend/sha_ni/digest.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "exact/format.h"
#include "sampler/sampler.h"

namespace fieldprint::backend {
namespace {

/// Slices are multiples of this: fewer tokens do not make up for fetching the weights once more, and the
/// kernels' register blocks of 4, 8, 12 and 16 tokens divide it.
constexpr std::int64_t kSliceTokens = 48;

/// Pages that a thread hashes at a time: enough for a kernel that walks several side by side.
constexpr std::int64_t kDigestsAtOnce = 6;

/// Bytes that a thread clears at a time: memory that was never touched is given by the page.
constexpr std::int64_t kClearedAtOnce = 64 << 10;

/// Tokens of each part when `tokens` are cut into `parts` or fewer.
std::int64_t slice_tokens(std::int64_t tokens, std::int64_t parts) {
  return (tokens + parts * kSliceTokens - 1) / (parts * kSliceTokens) * kSliceTokens;
}

/// The part of a linear that computes at most `count` tokens from `first` on.
LinearArgs tokens_of(const LinearArgs& args, std::int64_t first, std::int64_t count) {
  const std::int64_t digits = args.x.format == ActivationFormat::kA16 ? 2 : 1;
  const bool by_block = args.x.format == ActivationFormat::kA8G32;
  const std::int64_t scales = by_block ? args.x.cols / exact::kBlockCols : 1;
  LinearArgs part = args;
  part.tokens = static_cast<std::int32_t>(std::min(count, args.tokens - first));
  part.x.q += first * digits * args.x.cols;
  part.x.scale += first * scales;
  if (by_block) {
    part.x.block_sum += first * scales;
  } else {
    part.x.row_sum += first * digits;
  }
  part.y += first * args.y_stride;
  return part;
}

/// One row of a step, in the place of which the sampler may put a penalised one.
void choose_row(const CpuKernels& kernels, const ChooseArgs& args, std::int64_t row) {
  const auto vocab = static_cast<std::size_t>(args.vocab);
  const std::size_t words = static_cast<std::size_t>(exact::seen_words(args.vocab));
  const float* logits = args.logits + row * args.vocab;
  std::vector<std::int32_t> p;
  const sampler::LogitRow access{{logits, vocab},
                                 [&](float scale) {
                                   p.resize(vocab);
                                   kernels.probabilities({logits, args.vocab, &scale, p.data()}, 0, 1);
                                   return std::span<const std::int32_t>(p);
                                 },
                                 [&](std::span<const float> other) { logits = other.data(); }};
  const std::span<const std::uint32_t> seen(args.seen + static_cast<std::size_t>(row) * words, words);
  args.tokens[row] = sampler::choose(access, args.choices[row], seen);
}

using DigestKernel = void (*)(const DigestArgs&, std::int64_t begin, std::int64_t end);

/// By the host's SHA-256, which defines them.
void plain_digests(const DigestArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const Digest digest = sha256({args.messages[i], static_cast<std::size_t>(args.bytes)});
    std::copy(digest.begin(), digest.end(), args.digests + i * std::ssize(digest));
  }
}

/// A processor has SHA extensions or not, whatever its other instruction sets.
DigestKernel digest_kernel(const CpuKernels& kernels) {
  const bool plain = &kernels == &kScalarKernels || !sha_ni_obstacle().empty();
  return plain ? plain_digests : sha_ni::digests;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuKernels& kernels, int threads)
      : kernels_(kernels), digests_(digest_kernel(kernels)), pool_(threads) {}

  std::string_view name() const override { return kernels_.name; }

  std::uint8_t* allocate(std::int64_t bytes) override {
    constexpr std::size_t kAlign = 64;
    const std::size_t rounded = (static_cast<std::size_t>(bytes) + kAlign - 1) / kAlign * kAlign;
    void* memory = std::aligned_alloc(kAlign, std::max(rounded, kAlign));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<std::uint8_t*>(memory);
  }
  void release(std::uint8_t* memory) override { std::free(memory); }
  const void* adopt(const void* host, std::int64_t) override { return host; }
  PackedWeight adopt(const PackedWeight& weight) override { return weight; }
  void upload(void* device, const void* host, std::int64_t bytes) override { copy(device, host, bytes); }
  void download(void* host, const void* device, std::int64_t bytes) override { copy(host, device, bytes); }
  const void* host_view(const void* device, std::int64_t, std::vector<std::uint8_t>&) override {
    return device;
  }
  void copy(void* to, const void* from, std::int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void clear(void* device, std::int64_t bytes) override {
    auto* to = static_cast<std::uint8_t*>(device);
    pool_.parallel_for(bytes, kClearedAtOnce, [&](std::int64_t begin, std::int64_t end) {
      std::memset(to + begin, 0, static_cast<std::size_t>(end - begin));
    });
  }
  void clear_rows(void* device, std::int64_t row_bytes, std::int64_t stride, std::int64_t rows) override {
    for (std::int64_t row = 0; row < rows; ++row) {
      clear(static_cast<std::uint8_t*>(device) + row * stride, row_bytes);
    }
  }
  void synchronize() override {}
  void repeat(std::unique_ptr<Recording>&, const std::function<void()>& operations) override { operations(); }

  void embed(const EmbedArgs& args, std::int32_t tokens) override { rows(kernels_.embed, args, tokens); }
  void norm_quantize(const NormQuantizeArgs& args, std::int32_t tokens) override {
    rows(kernels_.norm_quantize, args, tokens);
  }
  void norm_add(const NormAddArgs& args, std::int32_t tokens) override {
    rows(kernels_.norm_add, args, tokens);
  }
  void quantize(const QuantizeArgs& args, std::int32_t tokens) override {
    rows(kernels_.quantize, args, tokens);
  }
  void gated_quantize(const GatedQuantizeArgs& args, std::int32_t tokens) override {
    rows(kernels_.gated_quantize, args, tokens);
  }
  void rope_append(const RopeAppendArgs& args, std::int32_t tokens) override {
    // Neighbouring tokens write into the same cache lines.
    run(kernels_.rope_append, args, tokens, std::max<std::int64_t>(tokens / (pool_.size() * 4), 16));
  }

  void linear(const LinearArgs& args) override {
    const std::int64_t tiles = (args.w.rows + exact::kTileRows - 1) / exact::kTileRows;
    // A few items a thread even out the cores; pairs of tiles suit the kernels' register blocks.
    const std::int64_t wanted = pool_.size() == 1 ? 1 : pool_.size() * 4;
    const std::int64_t grain = std::max<std::int64_t>((tiles / wanted + 3) / 4 * 4, 4);
    const std::int64_t ranges = (tiles + grain - 1) / grain;
    // A small matrix has too few tiles for many cores, so a prefill's tokens are cut as well.
    const std::int64_t slice = slice_tokens(args.tokens, (wanted + ranges - 1) / ranges);
    const std::int64_t slices = (args.tokens + slice - 1) / slice;
    if (slices == 1) return run(kernels_.linear, args, tiles, grain);
    pool_.parallel_for(ranges * slices, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t tile = item / slices * grain;
        const LinearArgs part = tokens_of(args, item % slices * slice, slice);
        kernels_.linear(part, tile, std::min(tile + grain, tiles));
      }
    });
  }

  void plan_attention(std::span<const AttentionSequence> sequences, std::int32_t heads,
                      std::int32_t kv_heads) override {
    sequences_.assign(sequences.begin(), sequences.end());
    plan_ = backend::plan_attention(sequences_, heads, kv_heads);
  }
  void attention(const AttentionArgs& args) override {
    AttentionArgs planned = args;
    planned.sequences = sequences_.data();
    planned.preface_items = plan_.preface.data();
    planned.context_items = plan_.context.data();
    run(kernels_.attention_preface, planned, static_cast<std::int64_t>(plan_.preface.size()), 1);
    run(kernels_.attention_context, planned, static_cast<std::int64_t>(plan_.context.size()), 1);
  }

  void probabilities(const ProbabilitiesArgs& args, std::int32_t count) override {
    run(kernels_.probabilities, args, count, 1);
  }

  void choose(const ChooseArgs& args, std::int32_t count) override {
    pool_.parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) choose_row(kernels_, args, row);
    });
  }

  std::unique_ptr<PendingDigests> page_digests(const PageDigestArgs& args) override {
    const auto start = std::chrono::steady_clock::now();
    const std::int64_t count = static_cast<std::int64_t>(args.blocks.size()) * args.pages;
    std::vector<const std::uint8_t*> pages;
    pages.reserve(static_cast<std::size_t>(count));
    for (const std::int32_t block : args.blocks) {
      const std::uint8_t* first = args.pool + block * args.block_stride;
      for (std::int64_t page = 0; page < args.pages; ++page) pages.push_back(first + page * args.page_bytes);
    }
    std::vector<Digest> digests(static_cast<std::size_t>(count));
    const DigestArgs work{pages.data(), args.page_bytes, reinterpret_cast<std::uint8_t*>(digests.data())};
    run(digests_, work, count, kDigestsAtOnce);
    return std::make_unique<ReadyDigests>(std::move(digests), std::chrono::steady_clock::now() - start);
  }
  std::int64_t digests_at_once() const override { return pool_.size(); }

 private:
  template <class Args>
  void run(void (*kernel)(const Args&, std::int64_t, std::int64_t), const Args& args, std::int64_t items,
           std::int64_t grain) {
    pool_.parallel_for(items, grain, [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  }

  template <class Args>
  void rows(void (*kernel)(const Args&, std::int64_t, std::int64_t), const Args& args, std::int64_t tokens) {
    run(kernel, args, tokens, std::max<std::int64_t>(tokens / (pool_.size() * 4), 1));
  }

  const CpuKernels& kernels_;
  DigestKernel digests_;
  ThreadPool pool_;
  std::vector<AttentionSequence> sequences_;  ///< of the current step
  AttentionPlan plan_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuKernels& kernels, int threads) {
  return std::make_unique<CpuBackend>(kernels, threads);
}

}  // namespace fieldprint::backend
