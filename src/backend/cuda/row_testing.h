#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/device_testing.h"
#include "backend/cuda/quantize.h"
#include "backend/cuda/rope.h"
#include "exact/format.h"

/// The device's row operations behind the signature of the CPU kernels: arguments and results in host memory,
/// items [begin, end). They let the CPU kernels' tests run on the device.
namespace fieldprint::backend::cuda::testing {

/// A copy of host memory on the device, written back by store().
template <class T>
class Mirror {
 public:
  Mirror(T* host, std::int64_t count) : host_(host), bytes_(static_cast<std::size_t>(count) * sizeof(T)) {
    if (host == nullptr) return;
    check(cudaMalloc(&device_, std::max<std::size_t>(bytes_, 1)), "cudaMalloc");
    check(cudaMemcpy(device_, host, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Mirror() { check(cudaFree(device_), "cudaFree"); }
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  T* data() const { return static_cast<T*>(device_); }
  void store() const { check(cudaMemcpy(host_, device_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy"); }

 private:
  T* host_;
  std::size_t bytes_;
  void* device_ = nullptr;
};

/// QuantRows of `tokens` rows on the device.
class MirroredRows {
 public:
  MirroredRows(const QuantRows& host, std::int64_t tokens)
      : host_(host),
        q_(host.q, tokens * digits() * host.cols),
        scale_(host.scale, tokens * (blocked() ? blocks() : 1)),
        row_sum_(host.row_sum, blocked() ? 0 : tokens * digits()),
        block_sum_(host.block_sum, blocked() ? tokens * blocks() : 0),
        non_finite_(host.non_finite, tokens) {}

  /// From row `begin` on.
  QuantRows from(std::int64_t begin) const {
    return {host_.format,
            host_.cols,
            q_.data() + begin * digits() * host_.cols,
            scale_.data() + begin * (blocked() ? blocks() : 1),
            row_sum_.data() + (blocked() ? 0 : begin * digits()),
            block_sum_.data() + (blocked() ? begin * blocks() : 0),
            non_finite_.data() + begin};
  }
  void store() const {
    q_.store();
    scale_.store();
    if (blocked()) {
      block_sum_.store();
    } else {
      row_sum_.store();
    }
    non_finite_.store();
  }

 private:
  bool blocked() const { return host_.format == ActivationFormat::kA8G32; }
  std::int64_t digits() const { return host_.format == ActivationFormat::kA16 ? 2 : 1; }
  std::int64_t blocks() const { return host_.cols / exact::kBlockCols; }

  QuantRows host_;
  Mirror<std::int8_t> q_;
  Mirror<float> scale_;
  Mirror<std::int32_t> row_sum_;
  Mirror<float> block_sum_;
  Mirror<std::int32_t> non_finite_;
};

inline std::int32_t count(std::int64_t begin, std::int64_t end) {
  return static_cast<std::int32_t>(end - begin);
}

inline std::int32_t largest(const std::int32_t* values, std::int64_t size) {
  return *std::max_element(values, values + size);
}

inline void quantize(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const Mirror x(args.x, end * args.out.cols);
  const MirroredRows out(args.out, end);
  cuda::quantize({x.data() + begin * args.out.cols, out.from(begin)}, count(begin, end), nullptr);
  out.store();
}

inline void norm_quantize(const NormQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.out.cols;
  const Mirror rows(args.rows, end);
  const Mirror x(args.x, (args.rows != nullptr ? largest(args.rows, end) + 1 : end) * cols);
  const Mirror weight(args.weight, cols);
  const MirroredRows out(args.out, end);
  const bool gathered = args.rows != nullptr;
  cuda::norm_quantize({x.data() + (gathered ? 0 : begin * cols), gathered ? rows.data() + begin : nullptr,
                       weight.data(), args.epsilon, out.from(begin)},
                      count(begin, end), nullptr);
  out.store();
}

inline void norm_add(const NormAddArgs& args, std::int64_t begin, std::int64_t end) {
  const Mirror x(args.x, end * args.cols);
  const Mirror weight(args.weight, args.cols);
  const Mirror residual(args.residual, end * args.cols);
  cuda::norm_add({x.data() + begin * args.cols, weight.data(), args.epsilon, args.cols,
                  residual.data() + begin * args.cols},
                 count(begin, end), nullptr);
  residual.store();
}

inline void gated_quantize(const GatedQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const Mirror gate_up(args.gate_up, 2 * end * args.out.cols);
  const MirroredRows out(args.out, end);
  cuda::gated_quantize({gate_up.data() + 2 * begin * args.out.cols, args.function, out.from(begin)},
                       count(begin, end), nullptr);
  out.store();
}

inline void probabilities(const ProbabilitiesArgs& args, std::int64_t begin, std::int64_t end) {
  const Mirror logits(args.logits, end * args.vocab);
  const Mirror scale(args.scale, end);
  const Mirror p(args.p, end * args.vocab);
  cuda::probabilities(
      {logits.data() + begin * args.vocab, args.vocab, scale.data() + begin, p.data() + begin * args.vocab},
      count(begin, end), nullptr);
  p.store();
}

inline void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = args.head_dim;
  const std::int64_t row = (args.heads + 2 * args.kv_heads) * dim;
  const std::int64_t high = (largest(args.positions, end) / exact::kRopeLow + 1) * dim / 2;
  const std::int64_t low = exact::kRopeLow * dim / 2;
  const Mirror qkv(args.qkv, end * row);
  const Mirror q_norm(args.q_norm, dim);
  const Mirror k_norm(args.k_norm, dim);
  const Mirror high_cos(args.rope.high_cos, high);
  const Mirror high_sin(args.rope.high_sin, high);
  const Mirror low_cos(args.rope.low_cos, low);
  const Mirror low_sin(args.rope.low_sin, low);
  const Mirror positions(args.positions, end);
  const Mirror blocks(args.blocks, end);
  const Mirror slots(args.slots, end);
  const std::int64_t channels = args.kv_heads * dim;
  const Mirror k_offset(args.scales.k_offset, channels);
  const Mirror k_inverse(args.scales.k_inverse, channels);
  const Mirror q_factor(args.scales.q_factor, channels);
  const Mirror v_inverse(args.scales.v_inverse, channels);
  const Mirror sink(args.scales.sink, 4LL * args.kv_heads);
  const Mirror pool(args.kv.pool, largest(args.blocks, end) * args.kv.block_stride + args.kv.layer_offset +
                                      args.kv_heads * page_bytes(dim));
  const Mirror q(args.q, end * args.heads * dim);
  const Mirror q_step(args.q_step, end * args.heads);
  const Mirror non_finite(args.non_finite, end);
  RopeAppendArgs device = args;
  device.qkv = qkv.data() + begin * row;
  device.q_norm = q_norm.data();
  device.k_norm = k_norm.data();
  device.rope = {high_cos.data(), high_sin.data(), low_cos.data(), low_sin.data()};
  device.positions = positions.data() + begin;
  device.blocks = blocks.data() + begin;
  device.slots = slots.data() + begin;
  device.scales = {k_offset.data(),  k_inverse.data(), q_factor.data(),
                   v_inverse.data(), nullptr,          sink.data()};
  device.kv.pool = pool.data();
  device.q = q.data() + begin * args.heads * dim;
  device.q_step = q_step.data() + begin * args.heads;
  device.non_finite = non_finite.data() + begin;
  cuda::rope_append(device, count(begin, end), nullptr);
  pool.store();
  q.store();
  q_step.store();
  non_finite.store();
}

}  // namespace fieldprint::backend::cuda::testing
