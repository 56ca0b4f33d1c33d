#include "cli/answer_printer.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

namespace fieldprint::cli {
namespace {

double mean_of(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value);
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

Digest kv_digest(const commit::Body& body) {
  Sha256 hash;
  for (const core::BlockRecord& block : body.kv_blocks) hash.update(block.digest);
  return hash.finish();
}

struct Rates {
  double prefill;
  double decode;
};

Rates rates(const core::Request& request, const core::Answer& answer) {
  const double computed =
      static_cast<double>(request.prompt.size()) - static_cast<double>(answer.cached_tokens);
  const double decoded = static_cast<double>(answer.output.size()) - 1;
  return {answer.prefill_seconds > 0 ? computed / answer.prefill_seconds : 0,
          answer.decode_seconds > 0 ? decoded / answer.decode_seconds : 0};
}

nlohmann::json logprobs_of(const core::Answer& answer) {
  nlohmann::json list = nlohmann::json::array();
  for (const core::OutputToken& token : answer.output) {
    nlohmann::json alternatives = nlohmann::json::array();
    for (const core::TokenAlternative& other : token.alternatives) {
      alternatives.push_back({{"token", other.token}, {"logprob", other.logprob}});
    }
    list.push_back({{"token", token.token}, {"logprob", token.logprob}, {"alternatives", alternatives}});
  }
  return list;
}

std::string json_line(const core::Request& request, const core::Answer& answer, const commit::Body& body,
                      const std::string& receipt, const engine::Validation& validation) {
  const Rates speed = rates(request, answer);
  nlohmann::json line = {
      {"id", request.id},
      {"text", answer.text},
      {"token_ids", body.output_tokens},
      {"finish_reason", answer.finish_reason == core::FinishReason::kStop ? "stop" : "length"},
      {"receipt", receipt.empty() ? nlohmann::json() : nlohmann::json(receipt)},
      {"validated", true},
      {"commits", validation.commits},
      {"verdicts", validation.verdicts},
      {"reexecuted", validation.reexecuted},
      {"output_digest", to_hex(body.output_digest)},
      {"kv_digest", to_hex(kv_digest(body))},
      {"anchor_mass", {{"mean", mean_of(answer.anchor_mass)}, {"by_layer", answer.anchor_mass}}},
      {"usage",
       {{"prompt_tokens", request.prompt.size()},
        {"cached_tokens", answer.cached_tokens},
        {"swapped_tokens", answer.swapped_tokens},
        {"completion_tokens", answer.output.size()}}},
      {"timing", {{"prefill_tokens_per_s", speed.prefill}, {"decode_tokens_per_s", speed.decode}}}};
  if (request.logprobs >= 0) line["logprobs"] = logprobs_of(answer);
  // Text that ends inside a character is not UTF-8; it is shown with replacement characters.
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

void AnswerPrinter::expect(core::SequenceId id, const std::string& name) { answers_[id].name = name; }

void AnswerPrinter::text(core::SequenceId id, std::string_view text) {
  if (json_) return;
  answers_[id].pending += text;
  advance();
}

void AnswerPrinter::finished(core::SequenceId id, const core::Request& request, const core::Answer& answer,
                             const commit::Body& body, const std::string& receipt_path,
                             const engine::Validation& validation) {
  if (json_) {
    fmt::print("{}\n", json_line(request, answer, body, receipt_path, validation));
    std::fflush(stdout);
    return;
  }
  const Rates speed = rates(request, answer);
  Shown& shown = answers_[id];
  shown.footer = fmt::format("\n  [{} tokens at {:.0f}/s after a prompt of {} ({} cached) at {:.0f}/s",
                             answer.output.size(), speed.decode, request.prompt.size(), answer.cached_tokens,
                             speed.prefill);
  if (request.layout.anchor_tokens > 0) {
    shown.footer += fmt::format("; anchor mass {:.1f} %", 100 * mean_of(answer.anchor_mass));
  }
  shown.footer += fmt::format("; validated, {} commits", validation.commits);
  if (!receipt_path.empty()) shown.footer += "; receipt " + receipt_path;
  shown.footer += "]\n";
  shown.done = true;
  advance();
}

void AnswerPrinter::failed(core::SequenceId id) {
  answers_[id].done = true;
  answers_[id].footer = "\n  [failed]\n";
  if (!json_) advance();
}

void AnswerPrinter::advance() {
  while (!answers_.empty()) {
    auto& [id, shown] = *answers_.begin();
    if (!shown.begun && (!shown.pending.empty() || shown.done)) {
      fmt::print("{}> ", shown.name);
      shown.begun = true;
      streaming_ = true;
    }
    fmt::print("{}", shown.pending);
    shown.pending.clear();
    std::fflush(stdout);
    if (!shown.done) return;
    fmt::print("{}\n", shown.footer);
    std::fflush(stdout);
    answers_.erase(answers_.begin());
  }
}

void AnswerPrinter::finish() { std::fflush(stdout); }

}  // namespace fieldprint::cli
