#include "crash/disk_faults.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

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
        failure = opened.error();
        continue;
      }
      log = std::move(*opened);
    }
    const auto leaves = new_leaves(random);
    auto logged = log->append(leaves);
    if (!logged) {
      failure = logged.error();
      continue;
    }
    for (std::size_t k = 0; k < leaves.size(); ++k) {
      promises.push_back(
          {vfs.count(), (*logged)[k].index, ledger::leaf_hash(leaves[k]), (*logged)[k].checkpoint});
    }
    if (i % 5 == 4) (void)log->store().keep_checkpoint(logged->front().checkpoint);
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

void count(Tally& tally, const std::string& problem, std::size_t moment) {
  ++tally.tried;
  if (problem.empty()) ++tally.answered;
  if (!problem.empty() && tally.problem.empty())
    tally.problem = fmt::format("after call {}: {}", moment, problem);
}

}  // namespace

Tally cut_power(const std::string& folder, std::size_t stride, std::uint64_t seed, bool lying) {
  Tally tally{.what = "power cut while a ledger is written"};
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
  std::mt19937_64 random(seed);
  for (std::size_t cut = 0; cut <= calls.size(); cut += stride) {
    for (const Loss loss : {Loss::kAll, Loss::kNone, Loss::kSome, Loss::kTorn}) {
      const std::string path = put_files(folder, after_power_cut(calls, cut, loss, random));
      count(tally, problem_of(path, promises, cut, tally.lost), cut);
    }
  }
  return tally;
}

Tally fail_disk(const std::string& folder, std::size_t stride, std::uint64_t seed) {
  Tally tally{.what = "full disk or failed flush"};
  std::mt19937_64 random(seed);
  for (std::size_t moment = 0;; moment += stride) {
    const std::string place = folder + "/failing";
    std::filesystem::remove_all(place);
    std::filesystem::create_directory(place);
    const std::string path = place + "/" + kFile;
    std::optional<Error> failure;
    std::vector<Promise> promises;
    std::vector<Call> calls;
    {
      RecordingVfs vfs;
      vfs.fail_at(moment);
      promises = grow(path, vfs, seed, failure);
      if (!vfs.failed()) return tally;
      calls = vfs.calls();
    }
    std::string problem;
    if (failure && failure->kind != ErrorKind::kEnvironment)
      problem = "another error than the disk's: " + failure->message;
    if (problem.empty()) problem = problem_of(path, promises, SIZE_MAX, tally.lost);
    count(tally, problem, moment);
    const std::size_t cut = moment + random() % (calls.size() - std::min(moment, calls.size() - 1));
    const Loss loss = random() % 2 == 0 ? Loss::kSome : Loss::kAll;
    count(tally,
          problem_of(put_files(folder, after_power_cut(calls, cut, loss, random)), promises, cut, tally.lost),
          cut);
  }
}

}  // namespace fieldprint::crash
