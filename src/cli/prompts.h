#pragma once

#include <optional>
#include <string>
#include <vector>

#include "anchor/anchor.h"
#include "base/result.h"
#include "core/request.h"
#include "tokenizer/chat_template.h"

namespace fieldprint::cli {

/// A prompt as the user gave it: a chat, or plain text to go on from.
struct Prompt {
  std::string id;
  std::vector<tokenizer::Message> messages;  ///< empty: `text` is the prompt
  std::string text;
  SamplingSettings sampling;
  std::int32_t max_tokens = 128;
  std::vector<std::string> stop;
  std::vector<core::Input> inputs{};
  std::int32_t logprobs = -1;
};

/// Reads a chat: a JSON array of {"role", "content"}, or an object with such an array under "messages".
Result<Prompt> read_chat(const std::string& path, const Prompt& defaults);

/// Reads prompts, one JSON object a line: {"id"?, "messages": [...] or "prompt": text, "n"?, "seed"?,
/// "temperature"?, "top_k"?, "top_p"?, "min_p"?, "repetition_penalty"?, "stop"?,
/// "inputs"?: [{"kind": "memory" or "tool_result", "digest": SHA-256 in hexadecimal}, ...]}. Messages of
/// tools are inputs too, before those. Errors name the line.
Result<std::vector<Prompt>> read_prompts(const std::string& path, const Prompt& defaults);

/// The request that a prompt makes under the given anchors.
Result<core::Request> make_request(const Prompt& prompt, const tokenizer::Tokenizer& tokenizer,
                                   const anchor::AnchorSet& anchors, const core::AnchorBounds& bounds,
                                   std::int64_t most_anchor_tokens);

}  // namespace fieldprint::cli
