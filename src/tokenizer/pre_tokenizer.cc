#include "tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <span>

#include "base/check.h"
#include "base/utf8.h"

namespace fieldprint::tokenizer {
namespace {

// In these patterns \s and \S mean Unicode's White_Space, see expand().
constexpr const char* kGpt2 = R"('(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"('(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N}{1,3}+)"
    R"(| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 = R"('(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}++|\p{N})"
                               R"(| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n/]*+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?)"
    R"(|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n/]*+|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Each pattern cuts what the one before it left: its matches, and what lies between them, are pieces.
struct Recipe {
  const char* name;
  std::array<const char*, 4> patterns;
  bool whole_words_first = false;
  bool expects_bos = false;
};

constexpr Recipe kRecipes[] = {
    {"default", {R"([\p{P}$+<=>^~|]++)", kGpt2, R"(\p{N}++)", R"([0-9][0-9][0-9])"}},
    {"gpt-2", {kGpt2}},
    {"phi-2", {kGpt2}},
    {"mpt", {kGpt2}},
    {"olmo", {kGpt2}},
    {"smollm", {R"(\p{N})", kGpt2}},
    {"starcoder", {R"(\p{N})", kGpt2}},
    {"refact", {R"(\p{N})", kGpt2}},
    {"command-r", {R"(\p{N})", kGpt2}},
    {"codeshell", {R"(\p{N})", kGpt2}},
    {"falcon", {R"([\p{P}$+<=>^~|`]++)", kGpt2, R"([0-9][0-9][0-9])"}},
    {"llama-bpe", {kLlama3}, true, true},
    {"llama-v3", {kLlama3}, true, true},
    {"llama3", {kLlama3}, true, true},
    {"dbrx", {kLlama3}},
    {"smaug-bpe", {kLlama3}},
    {"glm4", {kLlama3}},
    {"qwen2", {kQwen2}},
    {"deepseek-r1-qwen", {kQwen2}},
    {"stablelm2", {kQwen2}},
    {"tekken", {kTekken}, true, true},
    {"gpt-4o", {kGpt4o}},
};

const Recipe* find_recipe(std::string_view name) {
  if (name.empty()) name = "default";
  for (const Recipe& recipe : kRecipes) {
    if (name == recipe.name) return &recipe;
  }
  return nullptr;
}

// PCRE2's own \s also matches U+180E, which lost the White_Space property in Unicode 6.3.
std::string expand(std::string_view pattern) {
  constexpr std::string_view kWhiteSpace =
      R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\' && (next == 's' || next == 'S')) {
      if (!in_class) out += next == 's' ? "[" : "[^";
      out += kWhiteSpace;
      if (!in_class) out += "]";
      ++i;
    } else if (c == '\\') {
      out += {c, next};
      ++i;
    } else {
      if (c == '[' || c == ']') in_class = c == '[';
      out += c;
    }
  }
  return out;
}

const std::uint8_t* as_subject(std::string_view text) {
  return reinterpret_cast<const std::uint8_t*>(text.data());
}

}  // namespace

struct PreTokenizer::Stage {
  struct Free {
    void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  };
  std::unique_ptr<pcre2_code, Free> code;
};

struct PreTokenizer::Match {
  struct Free {
    void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  };
  std::unique_ptr<pcre2_match_data, Free> data{pcre2_match_data_create(1, nullptr)};

  /// The first match at or after `from`, as [begin, end); false if there is none. `text` is well-formed
  /// UTF-8.
  bool find(const pcre2_code* code, std::string_view text, std::size_t from, std::size_t& begin,
            std::size_t& end) {
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(code, as_subject(text), text.size(), from, options | PCRE2_NO_UTF_CHECK, data.get(),
                         nullptr);
    };
    int found = run(0);
    // The compiled code has a small stack; the interpreter gives the same answer from the heap.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = run(PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    CHECK(found >= 0, "PCRE2 failed with {} on one of the fixed patterns", found);
    const std::size_t* offsets = pcre2_get_ovector_pointer(data.get());
    begin = offsets[0];
    end = offsets[1];
    return true;
  }
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

bool PreTokenizer::expects_bos(std::string_view name) {
  const Recipe* recipe = find_recipe(name);
  return recipe != nullptr && recipe->expects_bos;
}

Result<PreTokenizer> PreTokenizer::make(std::string_view name) {
  const Recipe* recipe = find_recipe(name);
  if (recipe == nullptr) {
    std::string known;
    for (const Recipe& other : kRecipes) known += fmt::format("{}{}", known.empty() ? "" : ", ", other.name);
    return caller_error(fmt::format("pre-tokenizer \"{}\" is not known; known are: {}", name, known));
  }
  PreTokenizer out;
  out.whole_words_first_ = recipe->whole_words_first;
  for (const char* pattern : recipe->patterns) {
    if (pattern == nullptr) break;
    const std::string source = expand(pattern);
    int error = 0;
    std::size_t offset = 0;
    pcre2_code* code =
        pcre2_compile(as_subject(source), source.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
    if (code == nullptr) {
      return environment_error(
          fmt::format("PCRE2 refuses a pre-tokenizer pattern (error {} at {}); it must be built "
                      "with Unicode support",
                      error, offset));
    }
    out.stages_.push_back({std::unique_ptr<pcre2_code, Stage::Free>(code)});
    // Where code cannot be made executable, pcre2_match interprets: slower, same result.
    static_cast<void>(pcre2_jit_compile(code, PCRE2_JIT_COMPLETE));
  }
  return out;
}

void PreTokenizer::split(std::string_view text, const std::function<void(std::string_view)>& emit) const {
  Match match;
  CHECK(match.data != nullptr, "out of memory");
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = begin;
    for (std::size_t length; (length = utf8_character(text.substr(end, 4))) != 0;) end += length;
    if (end > begin) split_stage(0, text.substr(begin, end - begin), match, emit);
    begin = end;
    while (end < text.size() && utf8_character(text.substr(end, 4)) == 0) ++end;
    if (end > begin) emit(text.substr(begin, end - begin));
    begin = end;
  }
}

void PreTokenizer::split_stage(std::size_t stage, std::string_view text, Match& match,
                               const std::function<void(std::string_view)>& emit) const {
  if (stage == stages_.size()) return emit(text);
  std::size_t from = 0;
  std::size_t begin = 0;
  std::size_t end = 0;
  while (from < text.size() && match.find(stages_[stage].code.get(), text, from, begin, end)) {
    if (begin > from) split_stage(stage + 1, text.substr(from, begin - from), match, emit);
    split_stage(stage + 1, text.substr(begin, end - begin), match, emit);
    from = end;
  }
  if (from < text.size()) split_stage(stage + 1, text.substr(from), match, emit);
}

std::string unicode_version() {
  // With the terminating zero; the documentation asks for room for 24.
  std::array<char, 24> text{};
  const int written = pcre2_config(PCRE2_CONFIG_UNICODE_VERSION, text.data());
  CHECK(written > 0 && written <= static_cast<int>(text.size()), "pcre2_config gives {}", written);
  return text.data();
}

}  // namespace fieldprint::tokenizer
