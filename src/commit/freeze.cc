#include "commit/freeze.h"

#include "base/check.h"

namespace fieldprint::commit {
namespace {

/// All of a body that is settled before the first token.
Body begin(const Origin& origin, const core::Request& request) {
  Body body;
  body.model_digest = origin.model_digest;
  body.canon_version = origin.canon_version;
  body.anchors = origin.anchors;
  body.anchor_bounds = request.anchor_bounds;
  body.anchors_at = origin.anchors_at;
  const auto sink_end = request.prompt.begin() + 1;
  const auto anchors_end = request.prompt.begin() + request.layout.preface_tokens();
  body.sink_tokens.assign(request.prompt.begin(), sink_end);
  body.anchor_tokens.assign(sink_end, anchors_end);
  body.context_tokens.assign(anchors_end, request.prompt.end());
  body.sampling = request.sampling;
  body.max_tokens = request.max_tokens;
  body.stop = request.stop;
  body.inputs = origin.inputs;
  return body;
}

}  // namespace

OpenRecord freeze_open(const Origin& origin, const core::Request& request,
                       std::span<const core::BlockRecord> blocks) {
  Body body = begin(origin, request);
  body.kv_blocks.assign(blocks.begin(), blocks.end());
  return open_record(body);
}

Body freeze(const Origin& origin, const core::Request& request, const core::Answer& answer) {
  Body body = begin(origin, request);
  for (const core::OutputToken& token : answer.output) body.output_tokens.push_back(token.token);
  body.output_digest = digest_of(body.output_tokens);
  body.finish_reason = answer.finish_reason;
  body.kv_blocks = answer.blocks;
  body.anchor_mass = answer.anchor_mass;
  const auto parent = parent_of(body);
  CHECK(parent.ok(), "{}", parent.error().message);
  body.parent = *parent;
  return body;
}

}  // namespace fieldprint::commit
