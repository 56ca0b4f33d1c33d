#pragma once

#include <string>
#include <vector>

#include "base/bounds.h"
#include "cli/prompts.h"

namespace fieldprint::cli {

/// The options of `run`, as given.
struct RunOptions {
  std::string model;
  std::vector<std::string> anchors;
  std::string tenant;
  core::AnchorBounds anchor_bounds;
  std::int64_t max_anchor_tokens = 0;
  std::string text;
  std::string chat;
  std::string prompts;
  Prompt defaults;
  int threads = 0;
  std::string backend;
  std::int32_t batch = 8;
  std::int32_t prefill_chunk = 512;
  std::int64_t kv_blocks = 0;  ///< 0: as many as the prompts need
  bool no_prefix_cache = false;
  std::int64_t kv_swap_mib = 0;
  std::string kv_swap_file;
  std::string stream = "optimistic";
  std::int32_t run_ahead = 16;
  double reexecute_share = 1.0 / 512;
  std::int64_t ledger_patience = bounds::kLedgerPatience.count();  ///< seconds
  std::string receipts;
  std::string data;
  std::string database;
  std::string export_kv;
  bool json = false;
};

}  // namespace fieldprint::cli
