#include "verify/verify.h"

#include <algorithm>
#include <bit>

#include "anchor/anchor.h"
#include "commit/segment.h"
#include "commit/validate.h"
#include "exact/format.h"
#include "ledger/merkle.h"
#include "tokenizer/answer_text.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/pre_tokenizer.h"
#include "verify/kv_file.h"

namespace fieldprint::verify {
namespace {

using commit::Body;
using commit::Check;

std::int64_t history_tokens(const Body& body) {
  return static_cast<std::int64_t>(body.sink_tokens.size() + body.anchor_tokens.size() +
                                   body.context_tokens.size() + body.output_tokens.size());
}

/// Whether the stated history can be computed at all with this model; the reasons why not, otherwise.
std::vector<Check> check_history(const Body& body, const weights::ModelSpec& spec) {
  std::vector<Check> checks;
  const auto fits = [&](const char* name, const commit::TokenIds& tokens) {
    const auto outside =
        std::find_if(tokens.begin(), tokens.end(), [&](std::int32_t t) { return t < 0 || t >= spec.vocab; });
    if (outside == tokens.end()) return;
    checks.push_back(
        {name, false, fmt::format("token {} is not in the model's vocabulary of {}", *outside, spec.vocab)});
  };
  fits("sink_tokens", body.sink_tokens);
  fits("anchor_tokens", body.anchor_tokens);
  fits("context_tokens", body.context_tokens);
  fits("output_tokens", body.output_tokens);
  if (body.sink_tokens.size() != 1)
    checks.push_back({"sink_tokens", false, "a history begins with one sink token"});
  if (body.output_tokens.empty()) checks.push_back({"output_tokens", false, "the answer has no tokens"});
  if (history_tokens(body) > spec.context) {
    checks.push_back({"context_tokens", false,
                      fmt::format("the history has {} tokens, more than the model's context of {}",
                                  history_tokens(body), spec.context)});
  }
  return checks;
}

Check check_model(const Body& body, const weights::ModelFile& file) {
  const bool same = body.model_digest == file.digest();
  return {"model_digest", same,
          same ? "the receipt was made with this model"
               : fmt::format("the receipt was made with model {}, this is {}", to_hex(body.model_digest),
                             to_hex(file.digest()))};
}

Check check_canon(const Body& body) {
  const bool same = body.canon_version == exact::kCanonVersion;
  return {"canon_version", same,
          same ? "same arithmetic"
               : fmt::format("the receipt was made with arithmetic {}, this program computes {}",
                             body.canon_version, exact::kCanonVersion)};
}

/// The anchors' texts must be what the anchor tokens say.
Check check_anchor_tokens(const Body& body, const tokenizer::Tokenizer& tokenizer) {
  const char* name = "anchor_tokens";
  if (body.anchors.empty()) {
    const bool none = body.anchor_tokens.empty();
    return {name, none, none ? "no anchors were bound" : "there are anchor tokens, but no anchors"};
  }
  std::vector<anchor::Anchor> anchors;
  for (const commit::AnchorRecord& record : body.anchors) {
    auto anchor = anchor::Anchor::parse(record.canonical);
    if (!anchor) return {"anchors", false, anchor.error().message};
    anchors.push_back(std::move(*anchor));
  }
  auto set = anchor::AnchorSet::make(std::move(anchors));
  if (!set) return {"anchors", false, set.error().message};
  auto rendered = tokenizer::render_anchor(tokenizer, set->text());
  if (!rendered) return {"anchors", false, rendered.error().message};
  if (rendered->sink != body.sink_tokens)
    return {"sink_tokens", false, "the anchors do not follow this token"};
  const bool same = rendered->anchors == body.anchor_tokens;
  return {name, same,
          same ? fmt::format("{} tokens are the text of the anchors", body.anchor_tokens.size())
               : fmt::format("these are not the tokens of the anchors' text, cut into words by Unicode {} as "
                             "`fieldprint doctor` shows it; a maker with another version may have cut it "
                             "otherwise",
                             tokenizer::unicode_version())};
}

Check check_output(const Body& body, const Replayed& replayed, const tokenizer::Tokenizer& tokenizer) {
  const auto [stated, given] =
      std::mismatch(body.output_tokens.begin(), body.output_tokens.end(), replayed.output.begin());
  if (stated == body.output_tokens.end()) {
    return {"output_tokens", true, fmt::format("the model chooses all {} tokens", body.output_tokens.size())};
  }
  const auto index = stated - body.output_tokens.begin();
  return {fmt::format("output_tokens[{}]", index), false,
          fmt::format("the receipt says token {} ({:?}), the model chooses {} ({:?})", *stated,
                      tokenizer.token_bytes(*stated, true), *given, tokenizer.token_bytes(*given, true))};
}

const char* name_of(core::FinishReason reason) {
  return reason == core::FinishReason::kStop ? "stop" : "length";
}

/// How the stated output ends by its own rules, and that it goes on until then.
Check check_finish(const Body& body, const weights::ModelSpec& spec, const tokenizer::Tokenizer& tokenizer) {
  const char* name = "finish_reason";
  tokenizer::AnswerText text(tokenizer, body.stop);
  const std::size_t count = body.output_tokens.size();
  for (std::size_t i = 0; i < count; ++i) {
    bool ended = text.push(body.output_tokens[i]).ended;
    const bool last = i + 1 == count;
    const bool full =
        static_cast<std::int64_t>(count) >= body.max_tokens || history_tokens(body) >= spec.context;
    if (last && !ended && full) ended = text.finish().ended;
    if (ended != last && (ended || !full)) {
      return {name, false,
              ended ? fmt::format("the answer ends after token {} of {}", i + 1, count)
                    : "the answer stops although nothing ends it"};
    }
    if (!last) continue;
    const auto reason = ended ? core::FinishReason::kStop : core::FinishReason::kLength;
    const bool same = reason == body.finish_reason && static_cast<std::int64_t>(count) <= body.max_tokens;
    return {name, same,
            same ? fmt::format("the answer ends by {}", name_of(reason))
                 : fmt::format("the receipt says {}, but the answer ends by {}", name_of(body.finish_reason),
                               name_of(reason))};
  }
  return {name, false, "the answer has no tokens"};
}

Check check_mass(const Body& body, const Replayed& replayed) {
  if (body.anchor_mass.size() != replayed.anchor_mass.size()) {
    return {"anchor_mass", false,
            fmt::format("the receipt states {} layers, the replay has {}", body.anchor_mass.size(),
                        replayed.anchor_mass.size())};
  }
  for (std::size_t i = 0; i < body.anchor_mass.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(body.anchor_mass[i]) !=
        std::bit_cast<std::uint32_t>(replayed.anchor_mass[i])) {
      return {fmt::format("anchor_mass[{}]", i), false,
              fmt::format("the receipt says {}, the replay gives {}", body.anchor_mass[i],
                          replayed.anchor_mass[i])};
    }
  }
  return {"anchor_mass", true, "the anchors' share of attention is as stated"};
}

const char* name_of(core::Segment segment) {
  switch (segment) {
    case core::Segment::kSink:
      return "sink";
    case core::Segment::kAnchors:
      return "anchors";
    case core::Segment::kContext:
      return "context";
  }
  return "?";
}

Check check_blocks(const Body& body, const Replayed& replayed) {
  if (body.kv_blocks.size() != replayed.blocks.size()) {
    return {"kv_blocks", false,
            fmt::format("the receipt states {} blocks, the history fills {}", body.kv_blocks.size(),
                        replayed.blocks.size())};
  }
  for (std::size_t i = 0; i < body.kv_blocks.size(); ++i) {
    const core::BlockRecord& stated = body.kv_blocks[i];
    const core::BlockRecord& given = replayed.blocks[i];
    const std::string place = fmt::format("{} block {}", name_of(given.segment), given.index);
    if (stated.segment != given.segment || stated.index != given.index || stated.tokens != given.tokens) {
      return {fmt::format("kv_blocks[{}]", i), false,
              fmt::format("stated as something else than {} with {} tokens", place, given.tokens)};
    }
    if (stated.digest != given.digest) {
      return {fmt::format("kv_blocks[{}].digest", i), false,
              fmt::format("{}: the receipt says {}, the replay gives {}", place, to_hex(stated.digest),
                          to_hex(given.digest))};
    }
  }
  return {"kv_blocks", true, fmt::format("all {} blocks have the digests stated", body.kv_blocks.size())};
}

/// The chain of records behind the answer follows from its body, up to the parent that it names.
Check check_parent(const Body& body) {
  const char* name = "parent";
  auto chain = commit::chain_of(body);
  if (!chain) return {name, false, fmt::format("there is no chain of records: {}", chain.error().message)};
  const Digest last = ledger::leaf_hash(chain->back());
  const bool same = body.parent == last;
  return {name, same,
          same
              ? fmt::format("the body follows the last of {} records that it implies", chain->size())
              : fmt::format("the body follows record {}, but implies {}", to_hex(body.parent), to_hex(last))};
}

bool all_ok(const std::vector<Check>& checks) {
  return std::all_of(checks.begin(), checks.end(), [](const Check& check) { return check.ok; });
}

}  // namespace

const Check* Report::first_failure() const {
  const auto failed =
      std::find_if(checks.begin(), checks.end(), [](const Check& check) { return !check.ok; });
  return failed == checks.end() ? nullptr : &*failed;
}

Result<Report> verify(const commit::Receipt& receipt, const weights::ModelFile& file,
                      const tokenizer::Tokenizer& tokenizer, backend::Backend& backend,
                      const Options& options) {
  const Body& body = receipt.body;
  Report report;
  report.checks = commit::check_envelope(receipt, options.trusted);
  if (commit::find_invalid(receipt)) return report;
  report.checks.push_back(check_model(body, file));
  report.checks.push_back(check_canon(body));
  const std::vector<Check> history = check_history(body, file.spec());
  report.checks.insert(report.checks.end(), history.begin(), history.end());
  const bool comparable = body.model_digest == file.digest() && body.canon_version == exact::kCanonVersion;
  if (!comparable || !history.empty()) return report;

  report.checks.push_back(check_anchor_tokens(body, tokenizer));
  report.checks.push_back(check_finish(body, file.spec(), tokenizer));
  Replay replay(body, file, backend);
  auto replayed = replay.run(options.progress);
  if (!replayed) {
    if (replayed.error().kind != ErrorKind::kRefuted) return replayed.error();
    report.checks.push_back({"replay", false, replayed.error().message});
    return report;
  }
  report.tokens_replayed = replayed->tokens;
  report.seconds = replayed->seconds;
  report.checks.push_back(check_output(body, *replayed, tokenizer));
  report.checks.push_back(check_mass(body, *replayed));
  report.checks.push_back(check_blocks(body, *replayed));
  report.checks.push_back(check_parent(body));
  if (options.kv) report.checks.push_back(check_kv_file(*options.kv, body, replay, file.spec()));
  report.verified = all_ok(report.checks);
  return report;
}

}  // namespace fieldprint::verify
