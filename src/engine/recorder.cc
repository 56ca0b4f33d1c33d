#include "engine/recorder.h"

#include "base/fault_point.h"
#include "commit/envelope.h"
#include "store/data_folder.h"

namespace fieldprint::engine {

Result<std::unique_ptr<Recorder>> Recorder::open(const std::string& folder, const std::string& database) {
  auto log = folder.empty() ? store::open_passing_log() : store::open_log({folder, database});
  if (!log) return log.error();
  return std::unique_ptr<Recorder>(new Recorder(std::move(*log)));
}

Result<commit::Receipt> Recorder::record(const commit::Body& body) {
  auto encoded = commit::encode_body(body);
  if (!encoded) return encoded.error();
  const store::Bytes leaf = commit::leaf_of(std::move(*encoded));
  if (Status status = FAULT_POINT("recorder.before_answer"); !status) return status.error();
  auto logged = log_->append({&leaf, 1});
  if (!logged) return logged.error();
  CRASH_POINT("recorder.answer_recorded");
  store::LoggedLeaf& entry = logged->front();
  commit::Receipt receipt;
  receipt.body = body;
  receipt.leaf_index = entry.index;
  receipt.tree_size = entry.tree_size;
  receipt.inclusion_proof = std::move(entry.inclusion_proof);
  receipt.checkpoint = std::move(entry.checkpoint);
  receipt.verifier_key = log_->verifier().text();
  if (Status status = commit::seal(receipt); !status) return status.error();
  return receipt;
}

}  // namespace fieldprint::engine
