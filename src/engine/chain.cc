#include "engine/chain.h"

#include <utility>

#include "base/check.h"
#include "commit/segment.h"
#include "ledger/merkle.h"

namespace fieldprint::engine {

Chain::Chain(commit::Origin origin, core::Request request)
    : origin_(std::move(origin)), request_(std::move(request)) {}

Result<commit::Bytes> Chain::next(const Sealed& sealed) {
  auto leaf = std::visit([this](const auto& commit) { return encode(commit); }, sealed);
  if (!leaf) return leaf;
  leaves_.push_back(ledger::leaf_hash(*leaf));
  tokens_before_ =
      std::exchange(tokens_, request_.prompt.size() + (body_ ? body_->output_tokens.size() : output_.size()));
  return leaf;
}

Result<commit::Bytes> Chain::encode(const SealedPrompt& prompt) {
  blocks_ = prompt.blocks;
  return commit::encode(commit::freeze_open(origin_, request_, prompt.blocks));
}

Result<commit::Bytes> Chain::encode(const SealedSegment& segment) {
  const auto first = static_cast<std::int32_t>(output_.size());
  output_.insert(output_.end(), segment.tokens.begin(), segment.tokens.end());
  blocks_.push_back(segment.block);
  return commit::encode(commit::segment_record(leaves_.back(), first, segment.tokens, segment.block));
}

Result<commit::Bytes> Chain::encode(const SealedAnswer& answer) {
  body_ = commit::freeze(origin_, request_, answer.answer);
  CHECK(body_->parent == leaves_.back(), "the answer does not follow from the commits before it");
  auto encoded = commit::encode_body(*body_);
  if (!encoded) return encoded.error();
  return commit::leaf_of(std::move(*encoded));
}

History Chain::history() const {
  if (body_) return {*body_, body_->output_tokens.size(), !body_->anchor_mass.empty()};
  History history;
  commit::Body& body = history.body;
  const auto sink_end = request_.prompt.begin() + 1;
  const auto anchors_end = request_.prompt.begin() + request_.layout.preface_tokens();
  body.sink_tokens.assign(request_.prompt.begin(), sink_end);
  body.anchor_tokens.assign(sink_end, anchors_end);
  body.context_tokens.assign(anchors_end, request_.prompt.end());
  body.anchor_bounds = request_.anchor_bounds;
  body.sampling = request_.sampling;
  body.output_tokens = output_;
  body.output_tokens.push_back(0);  // a replay leaves out the last token, as generation does
  body.kv_blocks = blocks_;
  history.outputs = output_.size();
  return history;
}

double Chain::last_share() const {
  return static_cast<double>(tokens_ - tokens_before_) / static_cast<double>(tokens_);
}

}  // namespace fieldprint::engine
