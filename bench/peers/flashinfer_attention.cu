// Times FlashInfer's attention on the shapes that `fieldprint bench attention` times, after comparing each
// call's result with a plain kernel. Prints one JSON object. How it is built: build_flashinfer.
//
// usage: flashinfer_attention [REPEATS]
//
// 32 query and 8 KV heads of size 128. Decode: one query a sequence over a paged cache of bf16 or fp8 keys
// and values, by every kernel, page size and layout that FlashInfer offers on Hopper; the fastest counts.
// Prefill: causal self-attention in bf16 and in fp8. A timed unit is a CUDA graph of calls that go round at
// least 256 MiB of inputs, so that none finds its inputs in the L2 cache and the launches cost no time of
// their own.
#include <algorithm>
#include <string>
#include <vector>

#include "flashinfer_calls.h"
#include "flashinfer_reference.h"

namespace peers {
namespace {

struct Shape {
  int batch;
  int tokens;
};

constexpr Shape kDecode[] = {{64, 8192}, {16, 32768}, {1, 131072}, {256, 1024}, {1, 8192}, {4, 8192}};
constexpr Shape kPrefill[] = {{4, 4096}, {1, 16384}, {1, 32768}};
constexpr Shape kAnchored = {64, 8192};
constexpr int kAnchors = 128;
constexpr std::size_t kRotateBytes = 256 << 20;  // five times the L2 cache
constexpr std::size_t kLeastCalls = 4;           // of a graph
constexpr double kPrefillUnitUs = 20e3;  // long enough for the power limit to act, as it does on a real load

/// Median microseconds of a call over replays of a graph that goes round the calls, `least_calls` of them or
/// more.
double microseconds(const std::vector<Call>& calls, int repeats, std::size_t least_calls = kLeastCalls) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  const std::size_t count =
      (std::max(calls.size(), least_calls) + calls.size() - 1) / calls.size() * calls.size();
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (std::size_t i = 0; i < count; ++i) calls[i % calls.size()](stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  std::vector<float> times;
  for (int i = -2; i < repeats; ++i) {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "replay");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (i >= 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  check(cudaEventDestroy(begin), "cudaEventDestroy");
  check(cudaEventDestroy(end), "cudaEventDestroy");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return times[times.size() / 2] * 1e3 / static_cast<double>(count);
}

/// The page tables of a batch whose sequences' pages lie interleaved, as sequences that grow together have
/// them.
struct Tables {
  std::shared_ptr<void> memory;
  PagedCache cache;
};

Tables make_tables(Shape shape, int page_size, bool fp8, bool heads_first) {
  PagedCache cache{};
  cache.fp8 = fp8;
  cache.heads_first = heads_first;
  cache.batch = shape.batch;
  cache.tokens = shape.tokens;
  cache.page_size = page_size;
  std::vector<std::int32_t> words;
  for (int s = 0; s < shape.batch; ++s) {
    for (int p = 0; p < cache.pages_each(); ++p) words.push_back(p * shape.batch + s);
  }
  const std::size_t starts = words.size();
  for (int s = 0; s <= shape.batch; ++s) words.push_back(s * cache.pages_each());
  const std::size_t last_lens = words.size();
  words.insert(words.end(), static_cast<std::size_t>(shape.batch), page_size);
  const std::size_t lengths = words.size();
  words.insert(words.end(), static_cast<std::size_t>(shape.batch), shape.tokens);
  std::shared_ptr<void> memory = device_memory(words.size() * sizeof(std::int32_t));
  check(cudaMemcpy(memory.get(), words.data(), words.size() * sizeof(std::int32_t), cudaMemcpyHostToDevice),
        "tables");
  auto* base = static_cast<std::int32_t*>(memory.get());
  cache.pages = base;
  cache.page_starts = base + starts;
  cache.last_page_lens = base + last_lens;
  cache.lengths = reinterpret_cast<std::uint32_t*>(base + lengths);
  return {memory, cache};
}

/// Memory that every measurement uses in turn, filled for the type of cache at hand.
struct Pool {
  std::size_t bytes = std::size_t{64} * (8192 + kAnchors) * kKvHeads * kHeadDim * sizeof(__nv_bfloat16);
  std::shared_ptr<void> keys = device_memory(bytes);
  std::shared_ptr<void> values = device_memory(bytes);
  std::size_t query_bytes = std::size_t{32768} * kHeads * kHeadDim * sizeof(__nv_bfloat16);
  std::shared_ptr<void> queries = device_memory(query_bytes);
  std::shared_ptr<void> results = device_memory(query_bytes);
  std::size_t scratch_bytes = 512 << 20;
  std::shared_ptr<void> scratch = device_memory(scratch_bytes);

  void randomise_cache(bool fp8) const {
    if (fp8) {
      randomise_fp8(keys.get(), bytes, 1.0F, 1);
      randomise_fp8(values.get(), bytes, 1.0F, 2);
    } else {
      randomise_bf16(keys.get(), bytes / 2, 1.0F, 1);
      randomise_bf16(values.get(), bytes / 2, 1.0F, 2);
    }
    // Of a size that lets some tokens count more than others: scores of standard deviation 1.3.
    randomise_bf16(queries.get(), query_bytes / 2, 4.0F, 3);
  }

  __nv_bfloat16* q() const { return static_cast<__nv_bfloat16*>(queries.get()); }
  __nv_bfloat16* out() const { return static_cast<__nv_bfloat16*>(results.get()); }

  /// So that a row that no kernel writes is seen.
  void poison_results() const { check(cudaMemset(results.get(), 0xFF, query_bytes), "poison"); }
};

struct Timed {
  std::string kernel;
  int page_size;
  bool heads_first;
  double us;
  double error;
};

using Plan = std::function<Call(const Decode&)>;

std::size_t cache_bytes(Shape shape, bool fp8) {
  return std::size_t{2} * shape.batch * shape.tokens * kKvHeads * kHeadDim * (fp8 ? 1 : 2);
}

/// Times `plan` on copies of the shape's cache that lie one after the other in the pool.
Timed time_decode(const Pool& pool, const std::string& kernel, const Plan& plan, const Tables& tables,
                  int repeats) {
  const Shape shape = {tables.cache.batch, tables.cache.tokens};
  const std::size_t bytes = cache_bytes(shape, tables.cache.fp8);
  std::vector<Call> calls;
  double error = 0;
  for (std::size_t copy = 0; copy * bytes < kRotateBytes; ++copy) {
    Decode decode = {tables.cache, pool.q(), pool.out()};
    decode.cache.keys = static_cast<char*>(pool.keys.get()) + copy * bytes / 2;
    decode.cache.values = static_cast<char*>(pool.values.get()) + copy * bytes / 2;
    calls.push_back(plan(decode));
    if (copy > 0) continue;
    pool.poison_results();
    calls[0](nullptr);
    check(cudaDeviceSynchronize(), kernel.c_str());
    std::vector<Row> rows = {{0, 0, shape.tokens}};
    if (shape.batch > 1) rows.push_back({shape.batch - 1, shape.batch - 1, shape.tokens});
    error = relative_error(decode.cache, rows, decode.q, false, decode.out);
  }
  return {kernel, tables.cache.page_size, tables.cache.heads_first, microseconds(calls, repeats), error};
}

/// The largest error that a kernel's arithmetic explains: over fp8, XQA and the Hopper kernel round weights
/// (XQA queries too) to e4m3; the others compute in bf16.
double tolerance(const std::string& kernel, bool fp8) {
  return fp8 && kernel.rfind("decode", 0) != 0 ? 0.06 : 0.01;
}

bool failed = false;

void judge(const Timed& timed, double allowed) {
  if (timed.error < allowed) return;
  std::fprintf(stderr, "flashinfer_attention: %s, pages of %d: relative error %.4f\n", timed.kernel.c_str(),
               timed.page_size, timed.error);
  failed = true;
}

void print_timed(const Timed& timed) {
  std::printf(
      "\"kernel\": \"%s\", \"page_size\": %d, \"layout\": \"%s\", \"us\": %.3f, \"relative_error\": %.5f",
      timed.kernel.c_str(), timed.page_size, timed.heads_first ? "HND" : "NHD", timed.us, timed.error);
}

void run_decode(const Pool& pool, int repeats) {
  const Scratch scratch = {pool.scratch.get(), pool.scratch_bytes};
  std::printf("\"decode\": [");
  const char* separator = "";
  for (const bool fp8 : {false, true}) {
    pool.randomise_cache(fp8);
    for (const Shape shape : kDecode) {
      std::vector<Timed> all;
      for (const bool heads_first : {false, true}) {
        for (const int page_size : {16, 64}) {
          const Tables tables = make_tables(shape, page_size, fp8, heads_first);
          const auto time = [&](const char* kernel, const Plan& plan) {
            all.push_back(time_decode(pool, kernel, plan, tables, repeats));
            judge(all.back(), tolerance(kernel, fp8));
          };
          time("decode", [&](const Decode& decode) { return plan_cuda_core_decode(decode, scratch); });
          time("decode, tensor cores",
               [&](const Decode& decode) { return plan_tensor_core_decode(decode, scratch); });
          if (page_size == kXqaPageSize) time("xqa", fp8 ? plan_xqa_decode_fp8 : plan_xqa_decode_bf16);
        }
      }
      const auto best = std::min_element(all.begin(), all.end(),
                                         [](const Timed& a, const Timed& b) { return a.us < b.us; });
      std::printf("%s\n  {\"batch\": %d, \"tokens\": %d, \"kv\": \"%s\", \"tb_per_s\": %.4f, ", separator,
                  shape.batch, shape.tokens, fp8 ? "fp8" : "bf16",
                  static_cast<double>(cache_bytes(shape, fp8)) / best->us * 1e-6);
      print_timed(*best);
      std::printf(", \"all\": [");
      for (const Timed& timed : all) {
        std::printf("%s{", &timed == all.data() ? "" : ", ");
        print_timed(timed);
        std::printf("}");
      }
      std::printf("]}");
      separator = ",";
    }
  }
  std::printf("]");
}

/// Shared anchors by FlashInfer's cascade, against none and against a copy in each sequence's own pages.
void run_anchors(const Pool& pool, int repeats) {
  const Scratch scratch = {pool.scratch.get(), pool.scratch_bytes};
  pool.randomise_cache(false);
  const Plan plan = [&](const Decode& decode) { return plan_tensor_core_decode(decode, scratch); };
  const Tables none = make_tables(kAnchored, 64, false, true);
  const Tables concatenated = make_tables({kAnchored.batch, kAnchored.tokens + kAnchors}, 64, false, true);
  const Timed base = time_decode(pool, "decode, tensor cores", plan, none, repeats);
  const Timed longer = time_decode(pool, "decode, tensor cores", plan, concatenated, repeats);
  judge(longer, tolerance(longer.kernel, false));
  Tables prefix = make_tables({1, kAnchors}, 64, false, true);
  const std::size_t used = cache_bytes(kAnchored, false) / 2;
  prefix.cache.keys = static_cast<char*>(pool.keys.get()) + used;
  prefix.cache.values = static_cast<char*>(pool.values.get()) + used;
  Decode decode = {none.cache, pool.q(), pool.out()};
  decode.cache.keys = pool.keys.get();
  decode.cache.values = pool.values.get();
  const Call cascade = plan_cascade_decode(decode, prefix.cache, scratch);
  pool.poison_results();
  cascade(nullptr);
  check(cudaDeviceSynchronize(), "cascade");
  // What the cascade should give: sequence 0 as one whose pages are its own and then the prefix's.
  Tables whole = make_tables({1, kAnchored.tokens + kAnchors}, 64, false, true);
  std::vector<std::int32_t> pages;
  for (int p = 0; p < none.cache.pages_each(); ++p) pages.push_back(p * kAnchored.batch);
  for (int p = 0; p < kAnchors / 64; ++p) pages.push_back(none.cache.pages_each() * kAnchored.batch + p);
  check(cudaMemcpy(whole.cache.pages, pages.data(), pages.size() * sizeof(std::int32_t),
                   cudaMemcpyHostToDevice),
        "pages");
  whole.cache.keys = pool.keys.get();
  whole.cache.values = pool.values.get();
  const double error =
      relative_error(whole.cache, {{0, 0, kAnchored.tokens + kAnchors}}, decode.q, false, decode.out);
  const Timed cascaded = {"cascade", 64, true, microseconds({cascade}, repeats), error};
  judge(cascaded, 0.01);
  std::printf(
      "\"anchors\": {\"batch\": %d, \"tokens\": %d, \"anchors\": %d, \"kernel\": \"decode, tensor cores\", "
      "\"kv\": \"bf16\", "
      "\"none_us\": %.3f, \"concatenated_us\": %.3f, \"cascade_us\": %.3f, \"relative_error\": %.5f}",
      kAnchored.batch, kAnchored.tokens, kAnchors, base.us, longer.us, cascaded.us, cascaded.error);
}

void print_prefill(Shape shape, bool fp8, const std::vector<Timed>& all) {
  const auto best =
      std::min_element(all.begin(), all.end(), [](const Timed& a, const Timed& b) { return a.us < b.us; });
  const double operations = 2.0 * shape.batch * kHeads * kHeadDim * shape.tokens * shape.tokens;
  std::printf(
      "\n  {\"batch\": %d, \"tokens\": %d, \"kv\": \"%s\", \"kernel\": \"%s\", \"us\": %.3f, \"tflops\": "
      "%.2f, "
      "\"relative_error\": %.5f, \"all\": [",
      shape.batch, shape.tokens, fp8 ? "fp8" : "bf16", best->kernel.c_str(), best->us,
      operations / best->us * 1e-6, best->error);
  for (const Timed& timed : all) {
    std::printf("%s{\"kernel\": \"%s\", \"us\": %.3f, \"relative_error\": %.5f}",
                &timed == all.data() ? "" : ", ", timed.kernel.c_str(), timed.us, timed.error);
  }
  std::printf("]}");
}

/// Times the Hopper kernel's two interfaces for one shape.
std::vector<Timed> time_prefill(const Pool& pool, Shape shape, bool fp8, int repeats) {
  const Prefill prefill = {shape.batch,     shape.tokens,      fp8,       pool.q(),
                           pool.keys.get(), pool.values.get(), pool.out()};
  Tables tables = make_tables(shape, shape.tokens, fp8, false);  // for the definition: a sequence is one page
  tables.cache.keys = prefill.keys;
  tables.cache.values = prefill.values;
  std::vector<Row> rows;
  for (const int sequence : {0, shape.batch - 1}) {
    for (const int token : {0, 100, shape.tokens / 2 + 7, shape.tokens - 1}) {
      rows.push_back({std::int64_t{sequence} * shape.tokens + token, sequence, token + 1});
    }
  }
  std::vector<Timed> all;
  const auto time = [&](const char* kernel, const Call& call) {
    pool.poison_results();
    call(nullptr);
    check(cudaDeviceSynchronize(), kernel);
    const double error = relative_error(tables.cache, rows, prefill.q, fp8, prefill.out);
    const auto calls = static_cast<std::size_t>(kPrefillUnitUs / microseconds({call}, 1)) + 1;
    all.push_back({kernel, 0, false, microseconds({call}, repeats, calls), error});
    judge(all.back(), tolerance(kernel, fp8));
  };
  time("fa3, ragged batch", plan_hopper_ragged_prefill(prefill));
  if (shape.batch == 1) time("fa3, single", plan_hopper_single_prefill(prefill));
  return all;
}

void run_prefill(const Pool& pool, int repeats) {
  std::printf("\"prefill\": [");
  const char* separator = "";
  for (const bool fp8 : {false, true}) {
    pool.randomise_cache(fp8);
    if (fp8) randomise_fp8(pool.queries.get(), pool.query_bytes, 4.0F, 3);
    for (const Shape shape : kPrefill) {
      std::printf("%s", separator);
      print_prefill(shape, fp8, time_prefill(pool, shape, fp8, repeats));
      separator = ",";
    }
  }
  std::printf("]");
}

}  // namespace
}  // namespace peers

int main(int argc, char** argv) {
  using namespace peers;
  const int repeats = argc > 1 ? std::max(1, std::atoi(argv[1])) : 30;
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  const Pool pool;
  std::printf("{\"engine\": \"FlashInfer %s\", \"device\": \"%s\", \"repeats\": %d,\n", FLASHINFER_VERSION,
              device.name, repeats);
  run_decode(pool, repeats);
  std::printf(",\n");
  run_anchors(pool, repeats);
  std::printf(",\n");
  run_prefill(pool, repeats);
  std::printf("}\n");
  return failed ? 1 : 0;
}
