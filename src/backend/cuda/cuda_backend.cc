#include "backend/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "backend/cuda/adoption.h"
#include "backend/cuda/attention_step.h"
#include "backend/cuda/choose.h"
#include "backend/cuda/device.h"
#include "backend/cuda/digest.h"
#include "backend/cuda/digest_jobs.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/quantize.h"
#include "backend/cuda/rope.h"
#include "backend/cuda/transfer.h"
#include "base/check.h"

namespace fieldprint::backend {
namespace {

using cuda::check;

/// A stream that does not wait for the default one.
class OwnedStream {
 public:
  OwnedStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~OwnedStream() { check(cudaStreamDestroy(stream_), "cudaStreamDestroy"); }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  cuda::Stream get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A graph of the operations, and what the launches of attention were made from.
class CudaRecording final : public Recording {
 public:
  ~CudaRecording() override { clear(); }

  bool holds(const std::vector<std::uint64_t>& key) const { return graph_ != nullptr && key_ == key; }
  void record(cuda::Stream stream, std::vector<std::uint64_t> key, const std::function<void()>& operations) {
    clear();
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    operations();
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    key_ = std::move(key);
  }
  void replay(cuda::Stream stream) const { check(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

 private:
  void clear() {
    if (graph_ != nullptr) check(cudaGraphExecDestroy(graph_), "cudaGraphExecDestroy");
    graph_ = nullptr;
  }

  cudaGraphExec_t graph_ = nullptr;
  std::vector<std::uint64_t> key_;
};

/// All work goes to one stream in the order of the calls; page digests have a stream of their own, so that
/// they run beside what is enqueued after them.
class CudaBackend final : public Backend {
 public:
  std::string_view name() const override { return "cuda"; }

  std::uint8_t* allocate(std::int64_t bytes) override { return cuda::DeviceMemory(bytes).release(); }
  void release(std::uint8_t* memory) override { check(cudaFree(memory), "cudaFree"); }
  const void* adopt(const void* host, std::int64_t bytes) override { return adoption_.adopt(host, bytes); }
  PackedWeight adopt(const PackedWeight& weight) override { return adoption_.adopt(weight); }
  void upload(void* device, const void* host, std::int64_t bytes) override {
    transfer_.upload(device, host, bytes);
  }
  void download(void* host, const void* device, std::int64_t bytes) override {
    transfer_.download(host, device, bytes);
  }
  const void* host_view(const void* device, std::int64_t bytes, std::vector<std::uint8_t>& staging) override {
    staging.resize(static_cast<std::size_t>(bytes));
    transfer_.download(staging.data(), device, bytes);
    return staging.data();
  }
  void copy(void* to, const void* from, std::int64_t bytes) override {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream()),
          "cudaMemcpyAsync");
  }
  void clear(void* device, std::int64_t bytes) override { clear_rows(device, bytes, bytes, 1); }
  void clear_rows(void* device, std::int64_t row_bytes, std::int64_t stride, std::int64_t rows) override {
    check(cudaMemset2DAsync(device, static_cast<std::size_t>(stride), 0, static_cast<std::size_t>(row_bytes),
                            static_cast<std::size_t>(rows), stream()),
          "cudaMemset2DAsync");
  }
  void synchronize() override { check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize"); }

  void repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& operations) override;

  void embed(const EmbedArgs& args, std::int32_t tokens) override { cuda::embed(args, tokens, stream()); }
  void norm_quantize(const NormQuantizeArgs& args, std::int32_t tokens) override {
    cuda::norm_quantize(args, tokens, stream());
  }
  void norm_add(const NormAddArgs& args, std::int32_t tokens) override {
    cuda::norm_add(args, tokens, stream());
  }
  void quantize(const QuantizeArgs& args, std::int32_t tokens) override {
    cuda::quantize(args, tokens, stream());
  }
  void gated_quantize(const GatedQuantizeArgs& args, std::int32_t tokens) override {
    cuda::gated_quantize(args, tokens, stream());
  }
  void linear(const LinearArgs& args) override { cuda::linear(args, stream()); }
  void rope_append(const RopeAppendArgs& args, std::int32_t tokens) override {
    cuda::rope_append(args, tokens, stream());
  }
  void plan_attention(std::span<const AttentionSequence> sequences, std::int32_t, std::int32_t) override {
    attention_.begin(sequences);
  }
  void attention(const AttentionArgs& args) override { attention_.run(args); }
  void probabilities(const ProbabilitiesArgs& args, std::int32_t rows) override {
    cuda::probabilities(args, rows, stream());
  }
  void choose(const ChooseArgs& args, std::int32_t rows) override { cuda::choose(args, rows, stream()); }
  std::unique_ptr<PendingDigests> page_digests(const PageDigestArgs& args) override {
    return digests_.begin(args, stream());
  }
  std::int64_t digests_at_once() const override { return cuda::page_digests_at_once(); }

 private:
  cuda::Stream stream() const { return stream_.get(); }

  OwnedStream stream_;
  OwnedStream digest_stream_;
  cuda::Transfer transfer_{stream_.get()};
  cuda::Adoption adoption_{transfer_, stream_.get()};
  cuda::AttentionStep attention_{transfer_, stream_.get()};
  cuda::DigestJobs digests_{digest_stream_.get()};
};

void CudaBackend::repeat(std::unique_ptr<Recording>& recording, const std::function<void()>& operations) {
  if (recording == nullptr) {
    // The first time plans every kind of attention and sets kernels up, which no recording may do.
    recording = std::make_unique<CudaRecording>();
    return operations();
  }
  auto& graph = static_cast<CudaRecording&>(*recording);
  attention_.prepare();
  const std::vector<std::uint64_t> key = attention_.launch_key();
  if (!graph.holds(key)) graph.record(stream(), key, operations);
  graph.replay(stream());
}

std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

std::string find_obstacle() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "needs an NVIDIA driver; there is none here";
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorInsufficientDriver) {
    return fmt::format("needs a driver for CUDA {}; the one here is for {}", version(CUDART_VERSION),
                       version(driver));
  }
  if (error != cudaSuccess || devices == 0) {
    return fmt::format("needs a GPU: {}",
                       cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error));
  }
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "cudaDeviceGetAttribute");
  if (major == 9 && minor == 0) return "";
  return fmt::format("needs a GPU of compute capability 9.0, such as H100; the first one here has {}.{}",
                     major, minor);
}

}  // namespace

std::string cuda_obstacle() {
  static const std::string obstacle = find_obstacle();
  return obstacle;
}

std::unique_ptr<Backend> make_cuda_backend() {
  CHECK(cuda_obstacle().empty());
  return std::make_unique<CudaBackend>();
}

}  // namespace fieldprint::backend
