#pragma once

#include <cstdint>

#include "crash/disk_faults.h"
#include "store/data_folder.h"

namespace fieldprint::crash {

/// Answers requests on a tiny model, recording every commit and verdict in a ledger; a line for each answer
/// that is durable, at once. Gives the exit status.
int commit_answers(const store::DataFolder& place, std::uint64_t seed);

/// Bits flip in resident pages while answers are generated, and in cached ones that later requests take up:
/// an answer is what it would have been, or its trajectory is stopped. None that differs is called validated.
Tally damage_pages(std::int64_t trials, std::uint64_t seed);

/// Bits flip in blocks that were swapped into host memory, or into a file if `folder` is not empty, while a
/// pool too small for its sequences keeps sending blocks there and back: every answer is what it would have
/// been, is validated, and what came back altered is counted.
Tally damage_swapped_pages(const std::string& folder, std::int64_t trials, std::uint64_t seed);

/// The clock goes back, or jumps, around the expiry of anchors: what a record shows to be over stays over.
Tally turn_clocks();

}  // namespace fieldprint::crash
