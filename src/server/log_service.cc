#include "server/log_service.h"

#include <utility>

#include "base/bounds.h"
#include "ledger/checkpoint.h"
#include "ledger/tlog_proof.h"
#include "server/gzip.h"
#include "server/request_head.h"
#include "store/tile_export.h"

namespace fieldprint::server {
namespace {

using Kind = ledger::LogResource::Kind;

// What a checkpoint covers never changes, and neither does a partial tile; the checkpoint itself, and what is
// told beside it, is asked for again each time, which costs little while it is the same.
constexpr char kLasting[] = "public, max-age=31536000, immutable";
constexpr char kPassing[] = "no-cache";
constexpr char kNever[] = "no-store";
constexpr char kPlainText[] = "text/plain; charset=utf-8";
constexpr char kRetrySeconds[] = "2";

HttpAnswer plain(int status, std::string_view text) {
  return {status, {{"Cache-Control", kNever}}, kPlainText, fmt::format("{}\n", text)};
}

Error busy() { return environment_error("the ledger is busy"); }

HttpAnswer found(const ledger::LogResource& resource, std::string body, const HttpRequest& request) {
  const bool tile = resource.kind == Kind::kTile;
  HttpAnswer answer = {200, {}, tile ? "application/octet-stream" : kPlainText, std::move(body)};
  answer.fields = {{"Cache-Control", tile ? kLasting : kPassing}, {"Accept-Ranges", "none"}};
  // Hashes do not shrink.
  if (tile && resource.tile.entries) {
    answer.fields.emplace_back("Vary", "Accept-Encoding");
    if (accepts_gzip(request.accept_encoding)) {
      if (std::string packed = gzip(answer.body); packed.size() < answer.body.size()) {
        answer.fields.emplace_back("Content-Encoding", "gzip");
        answer.body = std::move(packed);
      }
    }
  }
  const std::string tag = fmt::format("\"{}\"", to_hex(sha256(answer.body)));
  answer.fields.emplace_back("ETag", tag);
  if (names_tag(request.if_none_match, tag)) {
    answer.status = 304;
    answer.body.clear();
  }
  return answer;
}

}  // namespace

// The right to read the store and the head, of one thread at a time.
class LogService::Turn {
 public:
  explicit Turn(LogService& service) : service_(service) {
    std::unique_lock lock(service.mutex_);
    has_it_ = service.free_.wait_for(lock, bounds::kMaxLedgerWait, [&] { return !service.taken_; });
    if (has_it_) service.taken_ = true;
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() {
    if (!has_it_) return;
    {
      const std::lock_guard lock(service_.mutex_);
      service_.taken_ = false;
    }
    service_.free_.notify_one();
  }
  bool has_it() const { return has_it_; }

 private:
  LogService& service_;
  bool has_it_ = false;
};

LogService::LogService(std::unique_ptr<store::LedgerStore> store, std::function<void(std::string_view)> tell)
    : store_(std::move(store)), tell_(std::move(tell)) {}

HttpAnswer LogService::answer(const HttpRequest& request) {
  if (request.method != "GET" && request.method != "HEAD") {
    HttpAnswer refused = plain(405, "this log is only read: GET and HEAD");
    refused.fields.emplace_back("Allow", "GET, HEAD");
    return refused;
  }
  const auto resource = ledger::parse_resource_path(request.target);
  if (!resource) return plain(404, "there is no such resource");
  auto body = read(*resource);
  if (!body) {
    HttpAnswer failed = plain(503, "the ledger does not answer; try again");
    failed.fields.emplace_back("Retry-After", kRetrySeconds);
    return failed;
  }
  if (!*body) return plain(404, "the log's last checkpoint does not cover this");
  return found(*resource, std::move(**body), request);
}

Result<std::uint64_t> LogService::size() {
  const Turn turn(*this);
  if (!turn.has_it()) return busy();
  if (Status status = follow(); !status) return status.error();
  return head_.size;
}

Result<std::optional<std::string>> LogService::read(const ledger::LogResource& resource) {
  const Turn turn(*this);
  if (!turn.has_it()) return busy();
  auto body = read_in_turn(resource);
  note_outcome(body ? nullptr : &body.error());
  return body;
}

// Nothing if the checkpoint does not cover it.
Result<std::optional<std::string>> LogService::read_in_turn(const ledger::LogResource& resource) {
  const bool tile = resource.kind == Kind::kTile;
  // What was covered once still is, unless the ledger is another one now.
  if (!tile || doubtful_ || !ledger::tile_exists(resource.tile, head_.size)) {
    if (Status status = follow(); !status) return status.error();
  }
  const std::optional<std::string> nothing;
  if (head_.note.empty()) return nothing;
  if (tile) {
    if (!ledger::tile_exists(resource.tile, head_.size)) return nothing;
    auto bytes = store::read_tile(*store_, resource.tile);
    if (!bytes) return bytes.error();
    return std::optional(std::string(bytes->begin(), bytes->end()));
  }
  if (resource.kind == Kind::kCheckpoint) return std::optional(head_.note);
  if (resource.record >= head_.size) return nothing;
  auto hashes = store_->inclusion_proof(resource.record, head_.size);
  if (!hashes) return hashes.error();
  return std::optional(ledger::format_tlog_proof({{}, resource.record, std::move(*hashes), head_.note}));
}

Status LogService::follow() {
  Status status = read_head();
  doubtful_ = !status;
  return status;
}

Status LogService::read_head() {
  auto note = store_->checkpoint();
  if (!note) return note.error();
  Head next;
  if (*note) {
    if (**note == head_.note) return {};
    auto checkpoint = store::read_checkpoint(**note);
    if (!checkpoint) return checkpoint.error();
    next = {std::move(**note), std::move(checkpoint->origin), checkpoint->size, checkpoint->root};
  }
  if (Status status = check_continued(next); !status) return status;
  head_ = std::move(next);
  return {};
}

Status LogService::check_continued(const Head& next) {
  const auto refuse = [&](std::string_view why) {
    return environment_error(fmt::format("{}: {}", store_->name(), why));
  };
  if (!head_.note.empty() && (next.size < head_.size || next.origin != head_.origin))
    return refuse(
        fmt::format("its last checkpoint does not continue the one served, of {} records", head_.size));
  for (const Head* head : std::initializer_list<const Head*>{&head_, &next}) {
    if (head->note.empty()) continue;
    auto root = store_->root_at(head->size);
    if (!root) return root.error();
    if (*root != head->root)
      return refuse(fmt::format("its tree of {} records is not that of the checkpoint", head->size));
  }
  return {};
}

void LogService::note_outcome(const Error* error) {
  {
    const std::lock_guard lock(mutex_);
    if (failing_ == (error != nullptr)) return;
    failing_ = error != nullptr;
  }
  if (tell_) tell_(error != nullptr ? std::string_view(error->message) : "the ledger answers again");
}

}  // namespace fieldprint::server
