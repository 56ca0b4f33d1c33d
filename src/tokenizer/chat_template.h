#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::tokenizer {

struct Message {
  std::string role;  ///< "system", "user", "assistant" or "tool"
  std::string content;
};

/// A prompt in the three segments that attention knows. sink + anchors + context is the whole prompt.
struct ChatPrompt {
  std::vector<std::int32_t> sink;     ///< the first token; empty only if the prompt is
  std::vector<std::int32_t> anchors;  ///< depends on nothing but the vocabulary and the anchor's text
  std::vector<std::int32_t> context;
};

/// The chat formats that are known. There is no Jinja interpreter: a template is recognised by its markers.
enum class TemplateFamily { kChatMl, kGemma, kLlama3, kMistral, kZephyr };

/// From the template's text; where there is none, from the architecture and the control tokens.
/// Error: none of the families (the message names them).
Result<TemplateFamily> template_family(const Tokenizer& tokenizer);

/// Renders a chat as the model's template does, with the anchor (if not empty) as the system message before
/// all others; where the family has no system turn (Gemma, Mistral) it opens the first user turn, as the
/// templates do it.
///
/// Contents are encoded as plain text: no content gives a control token. (Mistral's [INST] of version 1 and
/// Zephyr's
/// <|user|> are plain text in the templates themselves; there, content can imitate a turn.)
///
/// Two details follow the template where it can be asked without running it: the default system message of a
/// ChatML template stands where neither the anchor nor the first message is one, and Llama 3.1's fixed date
/// is written. Where Mistral's version 3 puts the system message into the last user turn, it stands in the
/// first here.
///
/// Errors: an unknown family; no messages; an unknown role; turns in an order that the family does not allow;
/// a vocabulary without the family's control tokens; more than bounds::kMaxTextBytes of text.
Result<ChatPrompt> render(const Tokenizer& tokenizer, std::string_view anchor_text,
                          std::span<const Message> messages, bool add_generation_prompt);

/// The sink and the anchors that render gives for this anchor, whatever the messages; context is empty.
Result<ChatPrompt> render_anchor(const Tokenizer& tokenizer, std::string_view anchor_text);

/// Plain completion. Without an anchor: the text as it stands, after BOS if the vocabulary says so. With an
/// anchor: sink and anchors of render_anchor, then the text. A model whose template is unknown gets BOS, the
/// anchor and an empty line.
Result<ChatPrompt> render_raw(const Tokenizer& tokenizer, std::string_view anchor_text,
                              std::string_view text);

}  // namespace fieldprint::tokenizer
