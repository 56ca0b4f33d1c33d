#include "end_to_end/invariance_requests.h"

#include <optional>

#include "base/bounds.h"
#include "cli/prompts.h"

namespace fieldprint::end_to_end {
namespace {

constexpr char kPolicy[] =
    "You work for the city library. Never promise a date on which a book comes back. Answer in one sentence "
    "and name the shelf where you can.";
constexpr char kIdentity[] = "You are Ada, a careful assistant for accountants. Round no amounts.";

constexpr SamplingSettings kGreedy{};
constexpr SamplingSettings kGreedyPenalised{.repetition_penalty = 1.3F};

SamplingSettings sampled(std::uint64_t seed, std::int32_t top_k, float top_p, float min_p, float penalty) {
  return {0.8F, top_k, top_p, min_p, penalty, seed};
}

struct Anchored {
  const char* text = "";
  core::AnchorBounds bounds;
};

class Maker {
 public:
  explicit Maker(const tokenizer::Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  core::Request raw(const char* id, std::string text, SamplingSettings sampling, std::int32_t tokens,
                    Anchored anchored = {}, std::vector<std::string> stop = {}) {
    return make({.id = id,
                 .messages = {},
                 .text = std::move(text),
                 .sampling = sampling,
                 .max_tokens = tokens,
                 .stop = std::move(stop),
                 .logprobs = 2},
                anchored);
  }
  core::Request chat(const char* id, const char* content, SamplingSettings sampling, std::int32_t tokens,
                     Anchored anchored = {}) {
    return make({.id = id,
                 .messages = {{"user", content}},
                 .text = "",
                 .sampling = sampling,
                 .max_tokens = tokens,
                 .stop = {},
                 .logprobs = 2},
                anchored);
  }
  /// A request whose context ends two tokens before a block is full, and whose answer goes on into the second
  /// block after that one.
  core::Request growing(const char* id, const std::string& text, SamplingSettings sampling,
                        std::int64_t blocks, Anchored anchored = {}) {
    core::Request request = raw(id, text, sampling, core::kBlockTokens + 6, anchored);
    const std::int64_t length = request.layout.preface_tokens() + blocks * core::kBlockTokens - 2;
    if (static_cast<std::int64_t>(request.prompt.size()) < length && !error_) {
      error_ = caller_error(fmt::format("{}: the text has fewer than {} tokens", id, length));
    }
    request.prompt.resize(static_cast<std::size_t>(length));
    return request;
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  core::Request make(const cli::Prompt& prompt, const Anchored& anchored) {
    std::vector<anchor::Anchor> anchors;
    if (*anchored.text != '\0') {
      anchors.push_back(anchor::Anchor::make(anchor::AnchorType::kPolicy, "", anchored.text).value());
    }
    const anchor::AnchorSet set = anchor::AnchorSet::make(std::move(anchors)).value();
    auto request = cli::make_request(prompt, tokenizer_, set, anchored.bounds, bounds::kMaxAnchorTokens);
    if (request) return *request;
    if (!error_) error_ = request.error();
    return {};
  }

  const tokenizer::Tokenizer& tokenizer_;
  std::optional<Error> error_;
};

/// A stock list of one shelf after another: every sentence differs from those before it.
std::string inventory() {
  std::string text = "Inventory of the harbour warehouse, taken in the order of the shelves. ";
  const char* goods[] = {"copper wire", "oak planks", "salt", "lamp oil", "canvas", "tea", "iron nails"};
  for (int shelf = 1; shelf <= 160; ++shelf) {
    text += fmt::format("Shelf {} holds {} crates of {}, counted by clerk {} before noon. ", shelf,
                        shelf * 37 % 91 + 2, goods[shelf % 7], shelf % 13 + 1);
  }
  return text;
}

/// A log in which code and several scripts take turns.
std::string mixed_log() {
  std::string text = "# Translation log\n";
  const char* lines[] = {"Der Zug nach München fährt um {} Uhr ab.", "图书馆在第{}街。",
                         "for i in range({}):\n    total += prices[i]", "Счёт номер {} оплачен.",
                         "القطار رقم {} متأخر."};
  for (int line = 1; line <= 260; ++line) {
    text += fmt::format("[{:03}] {}\n", line, fmt::format(fmt::runtime(lines[line % 5]), line * 7 % 500));
  }
  return text;
}

std::vector<core::Request> brief_requests(Maker& make) {
  const Anchored policy{kPolicy, {}};
  const Anchored identity{kIdentity, {}};
  const Anchored floor{kPolicy, {0.3F, 1.0F}};
  const Anchored ceiling{kPolicy, {0.0F, 0.1F}};
  return {
      make.raw("english", "The lighthouse keeper wrote in his diary every evening that", kGreedy, 8),
      make.raw("french", "L'été dernier, nous sommes allés à la plage et", sampled(2, 0, 0.9F, 0, 1), 8),
      make.raw("chinese", "今天天气很好，我们去公园", kGreedy, 8),
      make.raw("japanese", "昨日、図書館で本を", sampled(3, 0, 1, 0.05F, 1), 8),
      make.raw("arabic", "ذهبت إلى السوق لأشتري", kGreedy, 8),
      make.raw("hindi", "आज मौसम बहुत अच्छा है", sampled(4, 50, 0.95F, 0.02F, 1.1F), 8),
      make.raw("russian", "Вчера вечером мы гуляли по", kGreedyPenalised, 8),
      make.raw("emoji", "🎉🎂 Happy birthday 👩‍👩‍👧! é vs é", sampled(5, 3, 1, 0, 1), 6),
      make.raw("python", "def fibonacci(n: int) -> int:\n    \"\"\"Return the n-th number.\"\"\"\n    if n",
               kGreedy, 10, {}, {"\n\n", "return"}),
      make.raw("c", "static int compare(const void *a, const void *b) {\n\treturn *(const int *)a -",
               sampled(6, 0, 1, 0, 1), 8),
      make.chat("policy", "When will the atlas come back?", kGreedy, 8, policy),
      make.chat("policy-sampled", "Where do I find books on bees?", sampled(8, 0, 0.8F, 0, 1), 8, policy),
      make.chat("identity", "Add 10.25 and 3.50.", kGreedyPenalised, 8, identity),
      make.chat("floor", "When will the atlas come back?", kGreedy, 8, floor),
      make.chat("floor-sampled", "May I keep it longer?", sampled(9, 20, 1, 0.1F, 1), 8, floor),
      make.raw("ceiling", "Visitor: is the reading room open? Library:", sampled(10, 0, 0.95F, 0, 1), 6,
               ceiling),
      make.chat("two-blocks",
                "Here is a list: apples 4, pears 7, plums 12, figs 3, dates 40, quinces 5, cherries 81, "
                "walnuts 16, hazelnuts 23, almonds 9, melons 2, grapes 14, currants 33, medlars 6, limes 11, "
                "lemons 8, oranges 18, peaches 10. Which fruit is there most of?",
                kGreedy, 8),
  };
}

}  // namespace

Result<Requests> make_requests(const tokenizer::Tokenizer& tokenizer) {
  Maker make(tokenizer);
  Requests out;
  out.tiny = {
      make.raw("tiny", "One, two, three,", kGreedy, 3),
      make.raw("tiny-sampled", "The sun", sampled(11, 0, 0.9F, 0, 1.1F), 3, {"Be kind.", {0.2F, 1.0F}})};
  out.brief = brief_requests(make);
  out.growing = {
      make.growing("growing", inventory(), kGreedy, 1),
      make.growing("growing-sampled", mixed_log(), sampled(12, 40, 0.95F, 0, 1.1F), 1),
      make.growing("growing-greedy", "A second copy. " + mixed_log(), kGreedy, 1),
  };
  out.extended = {
      make.growing("long", inventory(), kGreedy, 33),
      make.growing("long-sampled", mixed_log(), sampled(14, 0, 0.9F, 0.02F, 1), 32, {kIdentity, {}}),
  };
  if (make.error()) return *make.error();
  return out;
}

}  // namespace fieldprint::end_to_end
