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
  const std::vector<Digest> digests = table.digests();
  std::vector<core::BlockRecord> records;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    records.push_back(
        core::block_record(request.layout, static_cast<std::int64_t>(i), table.size(), digests[i]));
  }
  return records;
}

}  // namespace fieldprint::engine
