#pragma once

#include <string>
#include <vector>

#include "anchor/anchor.h"
#include "base/result.h"
#include "engine/authority.h"
#include "store/data_folder.h"
#include "store/signed_log.h"

namespace fieldprint::cli {

/// The anchors of a run, in order.
struct RunAnchors {
  anchor::AnchorSet set;
  std::vector<bool> from_files;  ///< of each: whether a file was named, and not an id
};

/// Reads the anchors that `run --anchor` names: files, or ids in the ledger, or how those begin. What is a
/// file is taken for a file.
Result<RunAnchors> read_anchors(const std::vector<std::string>& arguments, const store::DataFolder& place);

/// Whether the ledger admits all of them for this use, and which one it does not, and why; while it has no
/// policy, its key takes in those from files (engine::adopt).
Status admit_anchors(const RunAnchors& anchors, engine::Authority& authority, store::SignedLog& log,
                     const anchor::Use& use);

}  // namespace fieldprint::cli
