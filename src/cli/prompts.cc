#include "cli/prompts.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "base/bounds.h"
#include "base/file.h"
#include "commit/receipt_file.h"

namespace fieldprint::cli {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 11> kKeys = {"id",    "messages",           "prompt", "n",
                                                    "seed",  "temperature",        "top_k",  "top_p",
                                                    "min_p", "repetition_penalty", "stop"};

Error wrong(const std::string& where, std::string_view what) {
  return caller_error(fmt::format("{}: {}", where, what));
}

Status read_messages(const json& value, const std::string& where, Prompt& prompt) {
  if (!value.is_array() || value.empty()) return wrong(where, "\"messages\" must be a non-empty array");
  for (const json& message : value) {
    if (!message.is_object() || !message.contains("role") || !message.contains("content") ||
        !message["role"].is_string() || !message["content"].is_string()) {
      return wrong(where, "every message needs a \"role\" and a \"content\", both strings");
    }
    prompt.messages.push_back({message["role"], message["content"]});
  }
  return {};
}

/// Reads an optional number in place; false if it is something else, or does not fit.
template <class T>
bool read_number(const json& object, const char* key, T& out) {
  if (!object.contains(key)) return true;
  const json& value = object[key];
  if constexpr (std::is_floating_point_v<T>) {
    if (!value.is_number()) return false;
    out = value.get<T>();
    return true;
  } else if constexpr (std::is_unsigned_v<T>) {
    if (!value.is_number_unsigned()) return false;
    out = value.get<T>();
    return true;
  } else {
    if (!value.is_number_integer()) return false;
    const auto wide = value.get<std::int64_t>();
    if (wide < 0 || wide > std::numeric_limits<T>::max()) return false;
    out = static_cast<T>(wide);
    return true;
  }
}

Status read_settings(const json& object, const std::string& where, Prompt& prompt) {
  const bool numbers = read_number(object, "n", prompt.max_tokens) &&
                       read_number(object, "seed", prompt.sampling.seed) &&
                       read_number(object, "temperature", prompt.sampling.temperature) &&
                       read_number(object, "top_k", prompt.sampling.top_k) &&
                       read_number(object, "top_p", prompt.sampling.top_p) &&
                       read_number(object, "min_p", prompt.sampling.min_p) &&
                       read_number(object, "repetition_penalty", prompt.sampling.repetition_penalty);
  if (!numbers) {
    return wrong(where,
                 "n, seed and top_k must be whole numbers from 0, and temperature, top_p, min_p and "
                 "repetition_penalty numbers");
  }
  if (!object.contains("stop")) return {};
  const json stops = object["stop"].is_array() ? object["stop"] : json::array({object["stop"]});
  prompt.stop.clear();
  for (const json& stop : stops) {
    if (!stop.is_string()) return wrong(where, "\"stop\" must be a string or an array of strings");
    prompt.stop.push_back(stop);
  }
  return {};
}

Result<Prompt> read_prompt(const json& object, const std::string& where, const Prompt& defaults) {
  Prompt prompt = defaults;
  if (object.is_array()) {
    if (Status status = read_messages(object, where, prompt); !status) return status.error();
    return prompt;
  }
  if (!object.is_object()) return wrong(where, "expected a JSON object with \"messages\" or \"prompt\"");
  for (const auto& [key, value] : object.items()) {
    if (std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end()) continue;
    return wrong(where, fmt::format("unknown key \"{}\"; known are {}", key, fmt::join(kKeys, ", ")));
  }
  if (object.contains("messages") == object.contains("prompt")) {
    return wrong(where, "give either \"messages\" or \"prompt\"");
  }
  if (object.contains("messages")) {
    if (Status status = read_messages(object["messages"], where, prompt); !status) return status.error();
  } else {
    if (!object["prompt"].is_string()) return wrong(where, "\"prompt\" must be a string");
    prompt.text = object["prompt"];
  }
  if (object.contains("id")) {
    if (!object["id"].is_string()) return wrong(where, "\"id\" must be a string");
    prompt.id = object["id"];
    if (Status status = commit::check_receipt_id(prompt.id); !status)
      return wrong(where, status.error().message);
  }
  if (Status status = read_settings(object, where, prompt); !status) return status.error();
  return prompt;
}

Result<std::string> read_text(const std::string& path) {
  auto bytes = read_file(path, bounds::kMaxTextBytes);
  if (!bytes) return bytes.error();
  return std::string(bytes->begin(), bytes->end());
}

}  // namespace

Result<Prompt> read_chat(const std::string& path, const Prompt& defaults) {
  auto text = read_text(path);
  if (!text) return text.error();
  const json value = json::parse(*text, nullptr, false);
  if (value.is_discarded()) return wrong(path, "not valid JSON");
  return read_prompt(value, path, defaults);
}

Result<std::vector<Prompt>> read_prompts(const std::string& path, const Prompt& defaults) {
  auto text = read_text(path);
  if (!text) return text.error();
  std::vector<Prompt> prompts;
  std::set<std::string> ids;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text->size();) {
    const std::size_t end = std::min(text->find('\n', begin), text->size());
    const std::string_view line = std::string_view(*text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    const json value = json::parse(line, nullptr, false);
    if (value.is_discarded()) return wrong(where, "not valid JSON");
    Prompt numbered = defaults;
    numbered.id = fmt::format("{}-{}", defaults.id, prompts.size() + 1);
    auto prompt = read_prompt(value, where, numbered);
    if (!prompt) return prompt.error();
    if (!ids.insert(prompt->id).second) {
      return wrong(where, fmt::format("a second prompt with the id \"{}\"; receipts need different names",
                                      prompt->id));
    }
    prompts.push_back(std::move(*prompt));
  }
  if (prompts.empty()) return wrong(path, "no prompt in it");
  return prompts;
}

Result<core::Request> make_request(const Prompt& prompt, const tokenizer::Tokenizer& tokenizer,
                                   const anchor::AnchorSet& anchors, const core::AnchorBounds& anchor_bounds,
                                   std::int64_t most_anchor_tokens) {
  const std::string anchor_text = anchors.text();
  auto rendered = prompt.messages.empty() ? tokenizer::render_raw(tokenizer, anchor_text, prompt.text)
                                          : tokenizer::render(tokenizer, anchor_text, prompt.messages, true);
  if (!rendered) return rendered.error();
  const std::int64_t anchor_tokens = static_cast<std::int64_t>(rendered->anchors.size());
  if (anchor_tokens > most_anchor_tokens) {
    return caller_error(
        fmt::format("the anchors have {} tokens, more than the {} allowed; shorten them or raise "
                    "--max-anchor-tokens",
                    anchor_tokens, most_anchor_tokens));
  }
  core::Request request;
  request.id = prompt.id;
  request.layout.anchor_tokens = anchor_tokens;
  for (const auto* part : {&rendered->sink, &rendered->anchors, &rendered->context}) {
    request.prompt.insert(request.prompt.end(), part->begin(), part->end());
  }
  for (const anchor::Anchor& anchor : anchors.anchors()) request.anchors.push_back(anchor.id());
  request.anchor_bounds = anchor_bounds;
  request.sampling = prompt.sampling;
  request.max_tokens = prompt.max_tokens;
  request.stop = prompt.stop;
  request.logprobs = prompt.logprobs;
  return request;
}

}  // namespace fieldprint::cli
