#include "tokenizer/chat_template.h"

#include <algorithm>

#include "base/bounds.h"

namespace fieldprint::tokenizer {
namespace {

constexpr std::string_view kFamilies = "ChatML, Gemma, Llama 3, Mistral-instruct, Zephyr";

bool has(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// The length of the white space character (as Python's str.strip, and so Jinja's trim, sees it) that `text`
/// begins with or, if `backwards`, ends with; else 0.
std::size_t blank(std::string_view text, bool backwards) {
  constexpr std::string_view kBlanks[] = {
      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",   " ",
      "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",
      "\u2007", "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000",
  };
  for (const std::string_view character : kBlanks) {
    if (backwards ? text.ends_with(character) : text.starts_with(character)) return character.size();
  }
  return 0;
}

std::string_view trim(std::string_view text) {
  for (std::size_t length; (length = blank(text, false)) != 0;) text.remove_prefix(length);
  for (std::size_t length; (length = blank(text, true)) != 0;) text.remove_suffix(length);
  return text;
}

/// Collects a prompt. Neighbouring texts are encoded as one, as the template's rendering would be; end_anchor
/// cuts there.
class Builder {
 public:
  explicit Builder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    const Vocabulary& vocabulary = tokenizer.vocabulary();
    if (vocabulary.bos && (vocabulary.add_bos || has(vocabulary.chat_template, "bos_token"))) {
      tokens_.push_back(*vocabulary.bos);
    }
  }

  Builder& text(std::string_view text) {
    pending_ += text;
    return *this;
  }
  /// A token of the template if the vocabulary has it as a control token, else its text.
  Builder& marker(std::string_view text) {
    const auto token = tokenizer_.control_token(text);
    return token ? this->token(*token) : this->text(text);
  }
  Builder& end_of_sequence() {
    const auto eos = tokenizer_.eos();
    return eos ? token(*eos) : *this;
  }
  void end_anchor() {
    const bool ends_in_text = !pending_.empty();
    flush();
    anchor_end_ = tokens_.size();
    continues_ = ends_in_text;
  }
  ChatPrompt take() {
    flush();
    ChatPrompt out;
    const auto first = tokens_.begin() + (tokens_.empty() ? 0 : 1);
    const auto cut = std::max(first, tokens_.begin() + static_cast<std::ptrdiff_t>(anchor_end_));
    out.sink.assign(tokens_.begin(), first);
    out.anchors.assign(first, cut);
    out.context.assign(cut, tokens_.end());
    return out;
  }

 private:
  Builder& token(std::int32_t id) {
    flush();
    tokens_.push_back(id);
    return *this;
  }
  void flush() {
    if (pending_.empty()) {
      continues_ = false;
      return;
    }
    const auto ids = tokenizer_.encode(pending_, {.continues = continues_});
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
    pending_.clear();
    continues_ = false;
  }

  const Tokenizer& tokenizer_;
  std::vector<std::int32_t> tokens_;
  std::string pending_;
  std::size_t anchor_end_ = 0;
  bool continues_ = false;  // plain text stands right before pending_
};

/// One family's way of writing turns.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, Builder& out)
      : tokenizer_(tokenizer), template_(tokenizer.vocabulary().chat_template), out_(out) {}
  virtual ~Writer() = default;

  /// The control tokens that the family cannot do without.
  virtual std::span<const std::string_view> needs() const { return {}; }
  /// The anchor, up to where messages begin to matter.
  virtual void anchor(std::string_view text) = 0;
  /// `anchored`: anchor() has been called.
  virtual Status messages(std::span<const Message> messages, bool anchored) = 0;
  virtual void generation_prompt() = 0;

 protected:
  const Tokenizer& tokenizer_;
  std::string_view template_;
  Builder& out_;
};

class ChatMl final : public Writer {
 public:
  using Writer::Writer;
  std::span<const std::string_view> needs() const override {
    static constexpr std::string_view kNeeds[] = {"<|im_start|>", "<|im_end|>"};
    return kNeeds;
  }
  void anchor(std::string_view text) override { turn("system", text); }
  Status messages(std::span<const Message> messages, bool anchored) override {
    if (!anchored && messages[0].role != "system") {
      if (const std::string_view standard = default_system(); !standard.empty()) turn("system", standard);
    }
    for (const Message& message : messages) turn(message.role, message.content);
    return {};
  }
  void generation_prompt() override { out_.marker("<|im_start|>").text("assistant\n"); }

 private:
  void turn(std::string_view role, std::string_view content) {
    out_.marker("<|im_start|>").text(role).text("\n").text(content).marker("<|im_end|>").text("\n");
  }
  /// The system message that stands in the template word for word. A template holds a new line as such or as
  /// "\n".
  std::string_view default_system() const {
    constexpr std::string_view kEnd = "<|im_end|>";
    for (const std::string_view opening : {"<|im_start|>system\n", "<|im_start|>system\\n"}) {
      for (std::size_t at = 0; (at = template_.find(opening, at)) != std::string_view::npos;) {
        at += opening.size();
        const std::size_t end = template_.find(kEnd, at);
        const std::string_view text = template_.substr(at, end == std::string_view::npos ? 0 : end - at);
        if (!text.empty() && text.find_first_of("'\"{}") == std::string_view::npos) return text;
      }
    }
    return {};
  }
};

/// For families without a system turn: users and the model alternate, a system message opens the first user
/// turn.
class Alternating : public Writer {
 public:
  using Writer::Writer;
  void anchor(std::string_view text) override {
    open_user();
    out_.text(text).text("\n\n");
  }
  Status messages(std::span<const Message> messages, bool anchored) override {
    std::string_view system;
    if (messages[0].role == "system") {
      system = messages[0].content;
      messages = messages.subspan(1);
    }
    if (messages.empty()) return caller_error("chat: a user message must follow the system message");
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const std::string_view expected = i % 2 == 0 ? "user" : "assistant";
      if (messages[i].role != expected) {
        return caller_error(
            fmt::format("chat: after the system message this model's turns alternate user, assistant, ...; "
                        "turn {} is \"{}\", expected \"{}\"",
                        i + 1, messages[i].role, expected));
      }
      if (i % 2 != 0) {
        assistant(messages[i].content);
        continue;
      }
      if (i > 0 || !anchored) open_user();
      if (i == 0 && !system.empty()) out_.text(system).text("\n\n");
      close_user(messages[i].content);
    }
    return {};
  }

 protected:
  virtual void open_user() = 0;
  virtual void close_user(std::string_view content) = 0;
  virtual void assistant(std::string_view content) = 0;
};

class Gemma final : public Alternating {
 public:
  using Alternating::Alternating;
  std::span<const std::string_view> needs() const override {
    static constexpr std::string_view kNeeds[] = {"<start_of_turn>", "<end_of_turn>"};
    return kNeeds;
  }
  void generation_prompt() override { out_.marker("<start_of_turn>").text("model\n"); }

 private:
  void open_user() override { out_.marker("<start_of_turn>").text("user\n"); }
  void close_user(std::string_view content) override {
    out_.text(trim(content)).marker("<end_of_turn>").text("\n");
  }
  void assistant(std::string_view content) override {
    generation_prompt();
    close_user(content);
  }
};

/// Versions differ in their spaces, which the template shows.
class Mistral final : public Alternating {
 public:
  using Alternating::Alternating;
  void generation_prompt() override {}  // the model answers after [/INST]

 private:
  void open_user() override {
    if (has(template_, "' [INST] '") || has(template_, "\" [INST] \"")) out_.text(" ");
    out_.marker("[INST]");
    if (has(template_, "[INST] ")) out_.text(" ");
  }
  void close_user(std::string_view content) override {
    out_.text(content);
    if (has(template_, " [/INST]")) out_.text(" ");
    out_.marker("[/INST]");
  }
  void assistant(std::string_view content) override {
    if (has(template_, "' ' + message['content']") || has(template_, "\" \" + message[\"content\"]"))
      out_.text(" ");
    out_.text(content).end_of_sequence();
    if (has(template_, "eos_token + ' '")) out_.text(" ");
  }
};

class Llama3 final : public Writer {
 public:
  using Writer::Writer;
  std::span<const std::string_view> needs() const override {
    static constexpr std::string_view kNeeds[] = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
    return kNeeds;
  }
  void anchor(std::string_view text) override { system(text); }
  Status messages(std::span<const Message> messages, bool anchored) override {
    if (!anchored && messages[0].role == "system") {
      system(messages[0].content);
      messages = messages.subspan(1);
    } else if (!anchored && dated()) {
      system("");
    }
    for (const Message& message : messages) {
      header(message.role == "tool" ? "ipython" : message.role);
      out_.text(trim(message.content)).marker("<|eot_id|>");
    }
    return {};
  }
  void generation_prompt() override { header("assistant"); }

 private:
  bool dated() const { return has(template_, "Cutting Knowledge Date"); }
  void header(std::string_view role) {
    out_.marker("<|start_header_id|>").text(role).marker("<|end_header_id|>").text("\n\n");
  }
  // The date is the one that the template itself falls back to: a prompt must not depend on the clock.
  void system(std::string_view content) {
    header("system");
    if (dated()) out_.text("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
    out_.text(trim(content)).marker("<|eot_id|>");
  }
};

class Zephyr final : public Writer {
 public:
  using Writer::Writer;
  void anchor(std::string_view text) override { turn("system", text); }
  Status messages(std::span<const Message> messages, bool) override {
    for (const Message& message : messages) {
      if (message.role == "tool") return caller_error("chat: this model's template has no tool turns");
      turn(message.role, message.content);
    }
    return {};
  }
  void generation_prompt() override { out_.marker("<|assistant|>").text("\n"); }

 private:
  void turn(std::string_view role, std::string_view content) {
    out_.marker(fmt::format("<|{}|>", role)).text("\n").text(content).end_of_sequence().text("\n");
  }
};

std::unique_ptr<Writer> writer_for(TemplateFamily family, const Tokenizer& tokenizer, Builder& out) {
  switch (family) {
    case TemplateFamily::kChatMl:
      return std::make_unique<ChatMl>(tokenizer, out);
    case TemplateFamily::kGemma:
      return std::make_unique<Gemma>(tokenizer, out);
    case TemplateFamily::kLlama3:
      return std::make_unique<Llama3>(tokenizer, out);
    case TemplateFamily::kMistral:
      return std::make_unique<Mistral>(tokenizer, out);
    case TemplateFamily::kZephyr:
      return std::make_unique<Zephyr>(tokenizer, out);
  }
  CHECK(false, "template family {}", static_cast<int>(family));
}

Result<std::unique_ptr<Writer>> make_writer(const Tokenizer& tokenizer, Builder& out) {
  const auto family = template_family(tokenizer);
  if (!family) return family.error();
  auto writer = writer_for(*family, tokenizer, out);
  for (const std::string_view marker : writer->needs()) {
    if (!tokenizer.control_token(marker)) {
      return caller_error(
          fmt::format("chat template: it writes {}, but the vocabulary has no such control token", marker));
    }
  }
  return writer;
}

Status check_messages(std::string_view anchor_text, std::span<const Message> messages) {
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  if (messages.empty()) return caller_error("chat: there are no messages");
  std::size_t bytes = anchor_text.size();
  for (const Message& message : messages) {
    bytes += message.content.size();
    if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
      return caller_error(
          fmt::format("chat: role \"{}\" is not one of system, user, assistant, tool", message.role));
    }
  }
  // Half, to leave room for what the template adds.
  if (bytes > static_cast<std::size_t>(bounds::kMaxTextBytes) / 2) {
    return caller_error(
        fmt::format("chat: {} bytes of text exceed the limit of {}", bytes, bounds::kMaxTextBytes / 2));
  }
  return {};
}

}  // namespace

Result<TemplateFamily> template_family(const Tokenizer& tokenizer) {
  const std::string_view text = tokenizer.vocabulary().chat_template;
  if (text.empty()) {
    if (tokenizer.vocabulary().architecture.starts_with("gemma")) return TemplateFamily::kGemma;
    if (tokenizer.control_token("<|im_start|>")) return TemplateFamily::kChatMl;
    if (tokenizer.control_token("<|start_header_id|>")) return TemplateFamily::kLlama3;
    return caller_error(
        fmt::format("the model has no chat template, and its architecture \"{}\" does not tell; known "
                    "families are {}; use a plain prompt",
                    tokenizer.vocabulary().architecture, kFamilies));
  }
  if (has(text, "<|im_start|>")) return TemplateFamily::kChatMl;
  if (has(text, "<start_of_turn>")) return TemplateFamily::kGemma;
  if (has(text, "<|start_header_id|>") && has(text, "<|end_header_id|>")) return TemplateFamily::kLlama3;
  const bool other_inst = has(text, "<<SYS>>") || has(text, "[SYSTEM_PROMPT]");
  if (has(text, "[INST]") && !other_inst) return TemplateFamily::kMistral;
  if (has(text, "<|user|>") && has(text, "<|assistant|>") && has(text, "eos_token") &&
      !has(text, "<|end|>")) {
    return TemplateFamily::kZephyr;
  }
  return caller_error(fmt::format(
      "the model's chat template is of none of the known families ({}); use a plain prompt", kFamilies));
}

Result<ChatPrompt> render(const Tokenizer& tokenizer, std::string_view anchor_text,
                          std::span<const Message> messages, bool add_generation_prompt) {
  if (Status status = check_messages(anchor_text, messages); !status) return status.error();
  Builder out(tokenizer);
  auto writer = make_writer(tokenizer, out);
  if (!writer) return writer.error();
  const bool anchored = !anchor_text.empty();
  if (anchored) {
    (*writer)->anchor(anchor_text);
    out.end_anchor();
  }
  if (Status status = (*writer)->messages(messages, anchored); !status) return status.error();
  if (add_generation_prompt) (*writer)->generation_prompt();
  return out.take();
}

Result<ChatPrompt> render_anchor(const Tokenizer& tokenizer, std::string_view anchor_text) {
  return render_raw(tokenizer, anchor_text, "");
}

Result<ChatPrompt> render_raw(const Tokenizer& tokenizer, std::string_view anchor_text,
                              std::string_view text) {
  if (anchor_text.size() + text.size() > static_cast<std::size_t>(bounds::kMaxTextBytes) / 2) {
    return caller_error(fmt::format("prompt: more than {} bytes of text", bounds::kMaxTextBytes / 2));
  }
  if (anchor_text.empty()) {
    const auto ids = tokenizer.encode(text, {.add_bos = true});
    ChatPrompt out;
    const auto first = ids.begin() + (ids.empty() ? 0 : 1);
    out.sink.assign(ids.begin(), first);
    out.context.assign(first, ids.end());
    return out;
  }
  Builder out(tokenizer);
  if (template_family(tokenizer)) {
    auto writer = make_writer(tokenizer, out);
    if (!writer) return writer.error();
    (*writer)->anchor(anchor_text);
  } else {
    out.text(anchor_text).text("\n\n");
  }
  out.end_anchor();
  out.text(text);
  return out.take();
}

}  // namespace fieldprint::tokenizer
