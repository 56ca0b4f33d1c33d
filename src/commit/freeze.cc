#include "commit/freeze.h"

namespace fieldprint::commit {

Body freeze(const Origin& origin, const core::Request& request, const core::Answer& answer) {
  Body body;
  body.model_digest = origin.model_digest;
  body.canon_version = origin.canon_version;
  body.anchors = origin.anchors;
  body.anchor_bounds = request.anchor_bounds;
  const auto sink_end = request.prompt.begin() + 1;
  const auto anchors_end = request.prompt.begin() + request.layout.preface_tokens();
  body.sink_tokens.assign(request.prompt.begin(), sink_end);
  body.anchor_tokens.assign(sink_end, anchors_end);
  body.context_tokens.assign(anchors_end, request.prompt.end());
  body.sampling = request.sampling;
  body.max_tokens = request.max_tokens;
  body.stop = request.stop;
  for (const core::OutputToken& token : answer.output) body.output_tokens.push_back(token.token);
  body.output_digest = digest_of(body.output_tokens);
  body.finish_reason = answer.finish_reason;
  body.kv_blocks = answer.blocks;
  body.anchor_mass = answer.anchor_mass;
  return body;
}

}  // namespace fieldprint::commit
