#include "crash/disk_faults.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>

#include "base/sha256.h"
#include "crash/recording_vfs.h"
#include "ledger/checkpoint.h"
#include "store/audit.h"
#include "store/open_ledger.h"
#include "store/signed_log.h"

namespace fieldprint::crash {
namespace {

constexpr char kFile[] = "ledger.sqlite";
constexpr int kAppends = 40;
constexpr int kAppendsUntilClosed = 9;

// A record that was acknowledged, when so many calls had been made.
struct Promise {
  std::size_t calls = 0;
  std::uint64_t index = 0;
  Digest leaf_hash{};
  std::string checkpoint;
};

const ledger::SignerKey& signer() {
  static const ledger::SignerKey key =
      *ledger::SignerKey::make("example.com/ledger", ledger::PrivateKey::from_seed(ledger::Seed{11}));
  return key;
}

Result<std::unique_ptr<store::SignedLog>> open_log(const std::string& path) {
  auto opened = store::open_ledger(path, store::Access::kAppend);
  if (!opened) return opened.error();
  return store::SignedLog::open(std::move(*opened), signer());
}

std::vector<store::Bytes> new_leaves(std::mt19937_64& random) {
  std::vector<store::Bytes> leaves(1 + random() % 3);
  for (store::Bytes& leaf : leaves) {
    leaf.resize(8 + random() % 400);
    for (std::uint8_t& byte : leaf) byte = static_cast<std::uint8_t>(random());
  }
  return leaves;
}

// Keeps the first error, or the first that is not the disk's.
void keep(std::optional<Error>& failure, const Error& error) {
  const bool worse =
      failure && failure->kind == ErrorKind::kEnvironment && error.kind != ErrorKind::kEnvironment;
  if (!failure || worse) failure = error;
}

// Grows a ledger, closing and opening it now and then; gives what was acknowledged. An append that fails is
// none.
std::vector<Promise> grow(const std::string& path, const RecordingVfs& vfs, std::uint64_t seed,
                          std::optional<Error>& failure) {
  std::mt19937_64 random(seed);
  std::vector<Promise> promises;
  std::unique_ptr<store::SignedLog> log;
  for (int i = 0; i < kAppends; ++i) {
    if (!log || i % kAppendsUntilClosed == 0) {
      log.reset();
      auto opened = open_log(path);
      if (!opened) {
        keep(failure, opened.error());
        continue;
      }
      log = std::move(*opened);
    }
    const auto leaves = new_leaves(random);
    auto logged = log->append(leaves);
    if (!logged) {
      keep(failure, logged.error());
      continue;
    }
    for (std::size_t k = 0; k < leaves.size(); ++k) {
      promises.push_back(
          {vfs.count(), (*logged)[k].index, ledger::leaf_hash(leaves[k]), (*logged)[k].checkpoint});
    }
    if (i % 5 != 4) continue;
    if (Status status = log->store().keep_checkpoint(logged->front().checkpoint); !status)
      keep(failure, status.error());
  }
  return promises;
}

// Empty if all that was promised is there, the ledger is sound, and it goes on.
std::string problem_of(const std::string& path, const std::vector<Promise>& promises, std::size_t calls,
                       std::int64_t& lost) {
  auto log = open_log(path);
  if (!log) return log.error().message;
  store::LedgerStore& ledger = (*log)->store();
  std::int64_t missing = 0;
  for (const Promise& promise : promises) {
    if (promise.calls > calls) break;
    auto hash = ledger.leaf_hash(promise.index);
    auto stated = store::read_checkpoint(promise.checkpoint);
    auto root = ledger.root_at(stated->size);
    if (!hash || *hash != promise.leaf_hash || !root || *root != stated->root) ++missing;
  }
  lost += missing;
  if (missing > 0) return fmt::format("{} acknowledged records are lost", missing);
  const ledger::VerifierKey key = signer().verifier();
  auto report = store::audit(ledger, {.keys = {&key, 1}});
  if (!report) return report.error().message;
  if (!report->problem.empty()) return report->problem;
  auto next = (*log)->append(std::vector<store::Bytes>{{1, 2, 3}});
  return next ? std::string() : next.error().message;
}

std::string put_files(const std::string& folder, const std::map<std::string, Bytes>& files) {
  const std::string place = folder + "/cut";
  std::filesystem::remove_all(place);
  std::filesystem::create_directory(place);
  for (const auto& [name, bytes] : files) {
    std::ofstream(place + "/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  return place + "/" + kFile;
}

// Trials in a folder. Power cuts that leave the same disk after the same promises are one.
class Trials {
 public:
  Trials(std::string folder, std::string what, std::uint64_t seed)
      : folder_(std::move(folder)), random_(seed), tally_{.what = std::move(what)} {}

  void count(const std::string& problem, std::size_t moment) {
    ++tally_.tried;
    if (problem.empty()) ++tally_.answered;
    if (!problem.empty() && tally_.problem.empty())
      tally_.problem = fmt::format("after call {}: {}", moment, problem);
  }

  void cut_power(const std::vector<Call>& calls, const std::vector<Promise>& promises, std::size_t moment,
                 Loss loss) {
    const auto files = after_power_cut(calls, moment, loss, random_);
    Sha256 hash;
    hash.update_u64(static_cast<std::uint64_t>(
        std::ranges::count_if(promises, [&](const Promise& promise) { return promise.calls <= moment; })));
    for (const auto& [name, bytes] : files)
      hash.update_u64(name.size()).update(name).update_u64(bytes.size()).update(bytes);
    if (!disks_.insert(hash.finish()).second) return;
    count(problem_of(put_files(folder_, files), promises, moment, tally_.lost), moment);
  }

  Tally& tally() { return tally_; }
  // A moment from the first to the last.
  std::size_t any(std::size_t first, std::size_t last) { return first + random_() % (last - first + 1); }

 private:
  std::string folder_;
  std::mt19937_64 random_;
  Tally tally_;
  std::set<Digest> disks_;
};

}  // namespace

Tally cut_power(const std::string& folder, std::size_t stride, std::uint64_t seed, bool lying) {
  std::vector<Call> calls;
  std::vector<Promise> promises;
  {
    RecordingVfs vfs;
    std::optional<Error> failure;
    promises = grow(folder + "/" + kFile, vfs, seed, failure);
    CHECK(!failure, "{}", failure->message);
    calls = vfs.calls();
  }
  // As many calls as before, so that the moments are the same.
  for (Call& call : calls) {
    if (lying && call.kind == Call::kSync) call.file.clear();
  }
  Trials trials(folder, "power cut while a ledger is written", seed);
  for (std::size_t moment = 0; moment <= calls.size(); moment += stride) {
    for (const Loss loss : {Loss::kAll, Loss::kNone, Loss::kSome, Loss::kTorn})
      trials.cut_power(calls, promises, moment, loss);
  }
  return trials.tally();
}

Tally fail_disk(const std::string& folder, std::size_t stride, std::uint64_t seed) {
  Trials trials(folder, "full disk or failed flush", seed);
  for (std::size_t number = 0;; number += stride) {
    const std::string place = folder + "/failing";
    std::filesystem::remove_all(place);
    std::filesystem::create_directory(place);
    const std::string path = place + "/" + kFile;
    std::optional<Error> failure;
    std::vector<Promise> promises;
    std::vector<Call> calls;
    std::size_t failed_after = 0;
    {
      RecordingVfs vfs;
      vfs.fail_at(number);
      promises = grow(path, vfs, seed, failure);
      if (!vfs.failed_after()) return trials.tally();
      failed_after = *vfs.failed_after();
      calls = vfs.calls();
    }
    std::string problem;
    if (failure && failure->kind != ErrorKind::kEnvironment)
      problem = "another error than the disk's: " + failure->message;
    if (problem.empty()) problem = problem_of(path, promises, SIZE_MAX, trials.tally().lost);
    trials.count(problem, failed_after);
    for (const std::size_t moment : {trials.any(failed_after, calls.size()), calls.size()}) {
      for (const Loss loss : {Loss::kAll, Loss::kSome}) trials.cut_power(calls, promises, moment, loss);
    }
  }
}

}  // namespace fieldprint::crash
