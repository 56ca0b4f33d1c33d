#include "engine/sequence.h"

namespace fieldprint::engine {

void Sequence::add_mass(const std::vector<float>& by_layer) {
  mass_sum.resize(by_layer.size());
  for (std::size_t i = 0; i < by_layer.size(); ++i) mass_sum[i] += static_cast<double>(by_layer[i]);
}

std::vector<float> Sequence::mean_mass() const {
  std::vector<float> mean;
  for (const double sum : mass_sum) {
    mean.push_back(static_cast<float>(sum / static_cast<double>(answer.output.size())));
  }
  return mean;
}

std::vector<core::BlockRecord> Sequence::block_records() const {
  const core::BlockLayout& layout = request.layout;
  const std::vector<Digest> digests = table.digests();
  std::vector<core::BlockRecord> records;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    const std::int64_t block = static_cast<std::int64_t>(i);
    const core::Segment segment = layout.segment_of_block(block);
    std::int64_t first = 0;
    if (segment == core::Segment::kAnchors) first = 1;
    if (segment == core::Segment::kContext) first = layout.preface_blocks();
    const std::int64_t end = std::min(layout.block_end(block), table.size());
    records.push_back({segment, static_cast<std::int32_t>(block - first),
                       static_cast<std::int32_t>(end - layout.block_begin(block)), digests[i]});
  }
  return records;
}

}  // namespace fieldprint::engine
