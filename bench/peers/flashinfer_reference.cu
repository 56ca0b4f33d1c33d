// Random inputs, and attention straight from its definition to compare FlashInfer's with.
#include <cuda_fp8.h>

#include <cmath>

#include "flashinfer_reference.h"

namespace peers {
namespace {

__device__ float uniform(std::size_t index, unsigned seed) {
  unsigned long long x = (index + 1) * 0x9E3779B97F4A7C15ULL + seed * 0xD1B54A32D192ED03ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<float>(static_cast<int>(x >> 40) - (1 << 23)) * 0x1p-23F;
}

template <typename Element>
__global__ void fill(Element* out, std::size_t count, float scale, unsigned seed) {
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    out[i] = static_cast<Element>(scale * uniform(i, seed));
  }
}

/// Attention of one row and head a block, straight from the definition.
template <typename Query, typename Kv>
__global__ void define(PagedCache cache, std::int64_t token_stride, std::int64_t head_stride, const Row* rows,
                       const Query* q, float* scores_all, float* out) {
  const Row row = rows[blockIdx.y];
  const int head = blockIdx.x, kv_head = head / (kHeads / kKvHeads), d = threadIdx.x;
  const std::int64_t result = std::int64_t{blockIdx.y} * kHeads + head;
  float* scores = scores_all + result * cache.tokens;
  __shared__ float query[kHeadDim];
  __shared__ float largest_shared;
  query[d] = static_cast<float>(q[(row.query * kHeads + head) * kHeadDim + d]);
  __syncthreads();
  const auto offset = [&](int token) {
    const std::int64_t page =
        cache.pages[row.sequence * (cache.tokens / cache.page_size) + token / cache.page_size];
    return page * cache.page_size * kKvHeads * kHeadDim + token % cache.page_size * token_stride +
           kv_head * head_stride;
  };
  for (int token = d; token < row.tokens; token += kHeadDim) {
    const Kv* key = static_cast<const Kv*>(cache.keys) + offset(token);
    float score = 0;
    for (int i = 0; i < kHeadDim; ++i) score += query[i] * static_cast<float>(key[i]);
    scores[token] = score * kSoftmaxScale;
  }
  __syncthreads();
  if (d == 0) {
    float largest = scores[0];
    for (int token = 1; token < row.tokens; ++token) largest = fmaxf(largest, scores[token]);
    largest_shared = largest;
  }
  __syncthreads();
  double sum = 0, total = 0;
  for (int token = 0; token < row.tokens; ++token) {
    const float weight = expf(scores[token] - largest_shared);
    total += weight;
    sum += weight * static_cast<float>(static_cast<const Kv*>(cache.values)[offset(token) + d]);
  }
  out[result * kHeadDim + d] = static_cast<float>(sum / total);
}

template <typename Element>
void randomise(void* out, std::size_t count, float scale, unsigned seed) {
  fill<<<4096, 256>>>(static_cast<Element*>(out), count, scale, seed);
  check(cudaGetLastError(), "fill");
}

}  // namespace

void randomise_bf16(void* out, std::size_t count, float scale, unsigned seed) {
  randomise<__nv_bfloat16>(out, count, scale, seed);
}

void randomise_fp8(void* out, std::size_t count, float scale, unsigned seed) {
  randomise<__nv_fp8_e4m3>(out, count, scale, seed);
}

double relative_error(const PagedCache& cache, const std::vector<Row>& rows, const void* q, bool fp8_queries,
                      const __nv_bfloat16* out) {
  const std::size_t width = kHeads * kHeadDim;
  std::shared_ptr<void> rows_device = device_memory(rows.size() * sizeof(Row));
  std::shared_ptr<void> scores = device_memory(rows.size() * kHeads * cache.tokens * sizeof(float));
  std::shared_ptr<void> expected_device = device_memory(rows.size() * width * sizeof(float));
  check(cudaMemcpy(rows_device.get(), rows.data(), rows.size() * sizeof(Row), cudaMemcpyHostToDevice),
        "rows");
  const dim3 grid(kHeads, static_cast<unsigned>(rows.size()));
  const auto launch = [&](auto query_type, auto kv_type) {
    define<decltype(query_type), decltype(kv_type)><<<grid, kHeadDim>>>(
        cache, cache.token_stride(), cache.head_stride(), static_cast<const Row*>(rows_device.get()),
        static_cast<const decltype(query_type)*>(q), static_cast<float*>(scores.get()),
        static_cast<float*>(expected_device.get()));
  };
  if (fp8_queries) {
    launch(__nv_fp8_e4m3{}, __nv_fp8_e4m3{});
  } else if (cache.fp8) {
    launch(__nv_bfloat16{}, __nv_fp8_e4m3{});
  } else {
    launch(__nv_bfloat16{}, __nv_bfloat16{});
  }
  check(cudaGetLastError(), "define");
  std::vector<float> expected(rows.size() * width);
  std::vector<__nv_bfloat16> actual(width);
  check(cudaMemcpy(expected.data(), expected_device.get(), expected.size() * sizeof(float),
                   cudaMemcpyDeviceToHost),
        "define");
  double distance = 0, length = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    check(cudaMemcpy(actual.data(), out + rows[r].query * width, width * sizeof(__nv_bfloat16),
                     cudaMemcpyDeviceToHost),
          "result");
    for (std::size_t i = 0; i < width; ++i) {
      const double wanted = expected[r * width + i];
      distance += std::pow(static_cast<double>(__bfloat162float(actual[i])) - wanted, 2);
      length += wanted * wanted;
    }
  }
  return std::sqrt(distance / length);
}

}  // namespace peers
