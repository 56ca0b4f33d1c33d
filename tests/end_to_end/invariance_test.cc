#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <map>

#include "backend/select.h"
#include "base/temporary_folder.h"
#include "end_to_end/covering_array.h"
#include "end_to_end/invariance_requests.h"
#include "engine/engine.h"
#include "eval/calibrate.h"
#include "weights/import.h"

/// One model, one history, one setting: one result, to the byte, whatever computes it. Every request is
/// answered once by itself, and again in many other circumstances; nothing may differ.
///
/// By default every pair of values of any two axes is met; with FIELDPRINT_INVARIANCE=full the whole product
/// is (hours), with FIELDPRINT_INVARIANCE=3/8 the third of eight parts of it, for many cores or machines. The
/// scalar backend is a hundred times slower than the others: it answers the two requests of
/// three tokens only, which is too few for a pool to be tight, and meets every value of the other axes.
namespace fieldprint::end_to_end {
namespace {

enum Axis : std::size_t { kBackend, kThreads, kBatch, kChunk, kPlacement, kPool, kCache, kAxes };
enum class Pool : std::size_t { kRoomy, kTight, kTightSwapped };  ///< swapped: what is evicted may come back
enum class Cache : std::size_t { kOff, kCold, kWarm };

constexpr int kThreadCounts[] = {1, 2};
constexpr std::int32_t kBatches[] = {1, 3, 8};
constexpr std::int32_t kAll = 3000;  ///< more than any prompt has
constexpr std::int32_t kChunks[] = {16, 64, 100, kAll};
constexpr std::uint64_t kPlacements[] = {0, 20240229};
constexpr const char* kPools[] = {"roomy", "tight", "tight and swapped"};
constexpr std::int64_t kSwapBytes = 1LL << 30;  ///< more than is ever evicted; memory only where it is used

using Row = Combination<kAxes>;

std::array<std::size_t, kAxes> sizes(std::size_t backends) {
  return {backends,
          std::size(kThreadCounts),
          std::size(kBatches),
          std::size(kChunks),
          std::size(kPlacements),
          std::size(kPools),
          3};
}

/// What must not change, byte for byte, by name.
using Outcome = std::vector<std::pair<const char*, std::string>>;

template <class T>
void append(std::string& bytes, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

Outcome outcome_of(const core::Answer& answer, const std::string& streamed) {
  std::string tokens, logprobs, mass, blocks;
  for (const core::OutputToken& token : answer.output) {
    append(tokens, token.token);
    append(logprobs, token.logprob);
    for (const core::TokenAlternative& other : token.alternatives) {
      append(logprobs, other.token);
      append(logprobs, other.logprob);
    }
  }
  for (const float share : answer.anchor_mass) append(mass, share);
  for (const core::BlockRecord& block : answer.blocks) {
    append(blocks, block.segment);
    append(blocks, block.index);
    append(blocks, block.tokens);
    append(blocks, block.digest);
  }
  return {{"output tokens", tokens},
          {"logprobs", logprobs},
          {"text", answer.text},
          {"streamed text", streamed},
          {"finish reason", std::string(1, static_cast<char>(answer.finish_reason))},
          {"anchor mass", mass},
          {"KV block digests", blocks}};
}

std::string first_difference(const Outcome& a, const Outcome& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].second != b[i].second) return a[i].first;
  }
  return "";
}

struct Answers {
  std::map<std::string, Outcome> outcomes;  ///< by request id
  std::int64_t cached_tokens = 0;
};

/// An engine that answers lists of requests, one list after the other.
class Service {
 public:
  Service(const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer, backend::Backend& backend,
          const engine::Options& options)
      : engine_(engine::Engine::create(
                    file, tokenizer, backend, options,
                    {.text = [this](core::SequenceId id, std::string_view text) { streamed_[id] += text; },
                     .finished = [this](core::SequenceId id,
                                        core::Answer answer) { finished_.emplace(id, std::move(answer)); },
                     .failed = [](core::SequenceId, const Error& error) { ADD_FAILURE() << error.message; }})
                    .value()) {}

  Answers answer(const std::vector<core::Request>& requests) {
    std::map<core::SequenceId, std::string> names;
    for (const core::Request& request : requests) names[engine_->submit(request).value()] = request.id;
    while (engine_->step()) continue;
    Answers out;
    for (const auto& [id, name] : names) {
      const auto found = finished_.find(id);
      if (found == finished_.end()) {
        ADD_FAILURE() << name << " was not answered";
        continue;
      }
      out.outcomes[name] = outcome_of(found->second, streamed_[id]);
      out.cached_tokens += found->second.cached_tokens;
    }
    return out;
  }

  std::int64_t preemptions() const { return engine_->stats().preemptions; }
  std::uint64_t swapped_in() const { return engine_->stats().cache.swap.swapped_in; }

 private:
  std::map<core::SequenceId, std::string> streamed_;
  std::map<core::SequenceId, core::Answer> finished_;
  std::unique_ptr<engine::Engine> engine_;
};

/// Requests that are answered together. The pool can be so tight that `competing` are all admitted, but
/// cannot all stay until their end.
struct Group {
  std::vector<core::Request> competing;
  std::vector<core::Request> others;

  std::vector<core::Request> all() const {
    std::vector<core::Request> out = competing;
    out.insert(out.end(), others.begin(), others.end());
    return out;
  }
  std::int64_t roomy_blocks() const {
    std::int64_t blocks = 0;
    for (const core::Request& request : all()) {
      blocks +=
          request.layout.blocks_for(static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens);
    }
    return blocks;
  }
  /// Enough for every request alone beside all anchors; of the competing ones' blocks at their ends, at least
  /// one fewer than all.
  std::int64_t tight_blocks() const {
    std::set<std::vector<std::int32_t>> pinned;
    std::int64_t pinned_blocks = 0;
    std::int64_t alone = 0;
    const auto blocks_of = [](const core::Request& request, std::int64_t tokens) {
      return request.layout.blocks_for(tokens) - request.layout.preface_blocks();
    };
    for (const core::Request& request : all()) {
      const std::int64_t tokens = static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens;
      alone = std::max(alone, 1 + blocks_of(request, tokens));
      if (request.layout.anchor_tokens == 0) continue;
      const auto begin = request.prompt.begin();
      if (pinned.emplace(begin, begin + 1).second) ++pinned_blocks;
      if (pinned.emplace(begin, begin + request.layout.preface_tokens()).second) {
        pinned_blocks += request.layout.anchor_blocks();
      }
    }
    std::int64_t admitted = 1;
    for (const core::Request& request : competing) {
      const std::int64_t prompt = static_cast<std::int64_t>(request.prompt.size());
      admitted += blocks_of(request, prompt) + 1 +
                  (request.layout.anchor_tokens > 0 ? request.layout.anchor_blocks() : 0);
    }
    return std::max(pinned_blocks + alone, admitted + 1);
  }
};

class Model {
 public:
  /// Imports the model of a GGUF file into a folder of its own.
  explicit Model(const std::string& gguf) {
    const auto backend = backend::select_backend("", 0).value();
    const auto calibrate = [&](const weights::ModelFile& draft) { return eval::calibrate(draft, *backend); };
    file_ = weights::import_gguf(gguf, folder_.file("model.fpm"), calibrate, nullptr).value();
    tokenizer_ = tokenizer::Tokenizer::make(file_->vocabulary()).value();
    const Requests requests = make_requests(*tokenizer_).value();
    tiny_.others = requests.tiny;
    brief_.others = requests.brief;
    brief_.others.insert(brief_.others.end(), requests.tiny.begin(), requests.tiny.end());
    growing_ = brief_;
    growing_.competing = requests.growing;
    extended_.competing = requests.extended;
    extended_.others.assign(requests.brief.end() - 3, requests.brief.end());
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  void answer_plainly();
  void compare(const std::string& backend, const Row& row, bool extended);
  std::string summary() const;
  std::int64_t preemptions() const { return preemptions_; }
  std::uint64_t swapped_in() const { return swapped_in_; }

 private:
  backend::Backend& backend(const std::string& name, int threads);
  void compare_group(const std::string& backend, const Row& row, const Group& group);

  TemporaryFolder folder_ = TemporaryFolder::make().value();
  std::unique_ptr<weights::ModelFile> file_;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
  Group tiny_, brief_, growing_, extended_;
  std::map<std::pair<std::string, int>, std::unique_ptr<backend::Backend>> backends_;
  std::map<std::string, Outcome> reference_;
  std::int64_t combinations_ = 0, answers_ = 0, preemptions_ = 0, cached_tokens_ = 0;
  std::uint64_t swapped_in_ = 0;
};

backend::Backend& Model::backend(const std::string& name, int threads) {
  std::unique_ptr<backend::Backend>& found = backends_[{name, threads}];
  if (!found) found = backend::select_backend(name, threads).value();
  return *found;
}

/// The reference: one request at a time, each prompt in one step, nothing cached, blocks in order.
void Model::answer_plainly() {
  for (const Group* group : {&growing_, &extended_}) {
    Service service(*file_, *tokenizer_, backend("", 2),
                    {.kv_blocks = group->roomy_blocks(),
                     .step_tokens = kAll,
                     .prefill_chunk = kAll,
                     .max_batch = 1,
                     .prefix_cache = false});
    for (auto& [id, outcome] : service.answer(group->all()).outcomes) reference_[id] = std::move(outcome);
    EXPECT_EQ(service.preemptions(), 0);
    for (const core::Request& request : group->competing) {
      const std::size_t tokens = reference_.at(request.id)[0].second.size() / sizeof(std::int32_t);
      EXPECT_EQ(tokens, static_cast<std::size_t>(request.max_tokens))
          << request.id << " must begin two blocks";
    }
  }
  ASSERT_GE(reference_.size(), 20U);
}

void Model::compare(const std::string& backend, const Row& row, bool extended) {
  const bool tight = Pool{row[kPool]} != Pool::kRoomy;
  compare_group(backend, row, backend == "scalar" ? tiny_ : tight ? growing_ : brief_);
  if (extended) compare_group(backend, row, extended_);
  ++combinations_;
}

void Model::compare_group(const std::string& backend, const Row& row, const Group& group) {
  const int threads = kThreadCounts[row[kThreads]];
  const std::int32_t batch = kBatches[row[kBatch]];
  const std::int32_t chunk = kChunks[row[kChunk]];
  const bool competing = Pool{row[kPool]} != Pool::kRoomy && !group.competing.empty();
  SCOPED_TRACE(fmt::format("{}, {} threads, batch {}, chunk {}, placement {}, {} pool, cache {}", backend,
                           threads, batch, chunk, kPlacements[row[kPlacement]],
                           competing ? kPools[row[kPool]] : kPools[0], row[kCache]));
  Service service(*file_, *tokenizer_, this->backend(backend, threads),
                  {.kv_blocks = competing ? group.tight_blocks() : group.roomy_blocks(),
                   .step_tokens = 2 * chunk + batch,
                   .prefill_chunk = chunk,
                   .max_batch = batch,
                   .prefix_cache = Cache{row[kCache]} != Cache::kOff,
                   .swap = {Pool{row[kPool]} == Pool::kTightSwapped ? kSwapBytes : 0, ""},
                   .placement_seed = kPlacements[row[kPlacement]]});
  const std::vector<core::Request> requests = group.all();
  Answers answers;
  for (int pass = 0; pass < (Cache{row[kCache]} == Cache::kWarm ? 2 : 1); ++pass) {
    answers = service.answer(requests);
    for (const auto& [id, outcome] : answers.outcomes) {
      EXPECT_EQ(first_difference(outcome, reference_.at(id)), "") << id;
      ++answers_;
    }
  }
  if (Cache{row[kCache]} == Cache::kWarm && !competing) {
    // More than the sinks alone, which are always full blocks.
    EXPECT_GT(answers.cached_tokens, static_cast<std::int64_t>(requests.size()));
  }
  if (competing && batch >= static_cast<std::int32_t>(group.competing.size())) {
    EXPECT_GT(service.preemptions(), 0);
  }
  cached_tokens_ += answers.cached_tokens;
  preemptions_ += service.preemptions();
  swapped_in_ += service.swapped_in();
}

std::string Model::summary() const {
  return fmt::format(
      "{}: {} requests, {} combinations of backend, threads, batch, prefill chunk, placement, pool and "
      "cache, {} answers with tokens, logprobs, text, anchor mass and KV block digests compared, {} "
      "preemptions, {} cached tokens, {} blocks that came back from the swap area",
      file_->spec().name, reference_.size(), combinations_, answers_, preemptions_, cached_tokens_,
      swapped_in_);
}

/// Combinations for the scalar backend that meet every value of the other axes.
std::vector<Row> scalar_rows() {
  const auto all = sizes(1);
  std::vector<Row> rows(*std::max_element(all.begin(), all.end()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t axis = 0; axis < kAxes; ++axis) rows[i][axis] = i % all[axis];
  }
  return rows;
}

/// How much of the product a run takes.
struct Scope {
  bool whole = false;
  std::size_t part = 1, parts = 1;  ///< of the whole product, from 1

  static Scope from_environment() {
    const char* text = std::getenv("FIELDPRINT_INVARIANCE");
    if (text == nullptr || *text == '\0') return {};
    if (std::string_view(text) == "full") return {.whole = true};
    Scope scope{.whole = true};
    const std::string_view given(text);
    const std::size_t slash = std::min(given.find('/'), given.size());
    const auto number = [](std::string_view digits, std::size_t& value) {
      const auto [end, error] = std::from_chars(digits.begin(), digits.end(), value);
      return error == std::errc() && end == digits.end();
    };
    const bool read = slash < given.size() && number(given.substr(0, slash), scope.part) &&
                      number(given.substr(slash + 1), scope.parts);
    if (!read || scope.part < 1 || scope.part > scope.parts) {
      throw std::runtime_error("FIELDPRINT_INVARIANCE must be 'full' or a part of it such as 3/8");
    }
    return scope;
  }

  std::vector<Row> rows_of(const std::array<std::size_t, kAxes>& axes) const {
    const std::vector<Row> all = whole_product(axes);
    std::vector<Row> mine;
    for (std::size_t i = part - 1; i < all.size(); i += parts) mine.push_back(all[i]);
    return mine;
  }
};

void check_model(const char* variable) {
  const char* gguf = std::getenv(variable);
  if (gguf == nullptr || *gguf == '\0') GTEST_SKIP() << "set " << variable << " to a GGUF file of the model";
  const Scope scope = Scope::from_environment();
  const auto start = std::chrono::steady_clock::now();
  Model model(gguf);
  model.answer_plainly();

  std::vector<std::string> vectorised = backend::available_backends();
  std::erase(vectorised, "scalar");
  const auto scalar = scope.whole ? scope.rows_of(sizes(1)) : scalar_rows();
  for (const Row& row : scalar) model.compare("scalar", row, false);
  if (!vectorised.empty()) {
    const auto axes = sizes(vectorised.size());
    const std::vector<Row> rows = scope.whole ? scope.rows_of(axes) : covering_pairs(axes);
    const std::set<std::size_t> extended = covering_values(rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      model.compare(vectorised[rows[i][kBackend]], rows[i], scope.whole || extended.contains(i));
    }
    EXPECT_GT(model.preemptions(), 0);
    EXPECT_GT(model.swapped_in(), 0U);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  fmt::print("{}, in {:.0f} s{}\n", model.summary(), seconds.count(),
             vectorised.empty() ? " (this machine has only the scalar backend)" : "");
}

TEST(Invariance, SmolLm2AnswersAlikeInAllCircumstances) { check_model("FIELDPRINT_SMOLLM2_GGUF"); }

TEST(Invariance, Gemma3AnswersAlikeInAllCircumstances) { check_model("FIELDPRINT_GEMMA3_GGUF"); }

TEST(CoveringArray, MeetsEveryPairOfValuesOfAnyTwoAxes) {
  const std::array<std::size_t, 4> axes = {2, 3, 4, 3};
  const auto rows = covering_pairs(axes);
  EXPECT_LT(rows.size(), whole_product(axes).size() / 3);
  for (std::size_t a = 0; a < 4; ++a) {
    for (std::size_t b = a + 1; b < 4; ++b) {
      std::set<std::pair<std::size_t, std::size_t>> met;
      for (const auto& row : rows) met.emplace(row[a], row[b]);
      EXPECT_EQ(met.size(), axes[a] * axes[b]);
    }
  }
}

}  // namespace
}  // namespace fieldprint::end_to_end
