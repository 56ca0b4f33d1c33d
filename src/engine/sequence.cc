#include "engine/sequence.h"

#include <algorithm>

#include "core/anchor_mass.h"

namespace fieldprint::engine {

void Sequence::add_mass(const std::vector<float>& by_layer) { core::add_anchor_mass(mass_sum, by_layer); }

std::vector<float> Sequence::mean_mass() const {
  return core::mean_anchor_mass(mass_sum, static_cast<std::int64_t>(answer.output.size()));
}

core::BlockRecord Sequence::block_record(std::int64_t block, const Digest& digest) const {
  return core::block_record(request.layout, block, table.size(), digest);
}

std::vector<core::BlockRecord> Sequence::block_records() const {
  const std::vector<Digest> digests = table.digests();
  std::vector<core::BlockRecord> records;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    records.push_back(block_record(static_cast<std::int64_t>(i), digests[i]));
  }
  return records;
}

std::int32_t Sequence::commit_of(std::int64_t position) const {
  if (position < prompt_tokens()) return 0;
  const std::int64_t generated =
      request.layout.place(position).block - request.layout.full_blocks(prompt_tokens());
  return static_cast<std::int32_t>(1 + generated);
}

std::int64_t Sequence::blocks_in(std::int32_t commits) const {
  if (commits == 0) return 0;
  return request.layout.full_blocks(prompt_tokens()) + commits - 1;
}

std::int64_t Sequence::outputs_in(std::int32_t commits) const {
  if (commits <= 1) return 0;
  const std::int64_t end = request.layout.block_end(blocks_in(commits) - 1) - prompt_tokens();
  return std::min(end, static_cast<std::int64_t>(answer.output.size()));
}

core::OutputToken output_token(const sampler::Pick& pick) {
  core::OutputToken token{pick.token, pick.logprob, {}};
  for (const sampler::TokenLogprob& other : pick.most_likely) {
    token.alternatives.push_back({other.token, other.logprob});
  }
  return token;
}

}  // namespace fieldprint::engine
