#include "engine/sequence.h"

#include "core/anchor_mass.h"

namespace fieldprint::engine {

void Sequence::add_mass(const std::vector<float>& by_layer) { core::add_anchor_mass(mass_sum, by_layer); }

std::vector<float> Sequence::mean_mass() const {
  return core::mean_anchor_mass(mass_sum, static_cast<std::int64_t>(answer.output.size()));
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
