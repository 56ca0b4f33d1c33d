#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "commit/receipt.h"
#include "core/request.h"
#include "engine/engine.h"

namespace fieldprint::cli {

/// Shows answers on stdout: as JSON lines when they are validated, or as text while they come. Of answers
/// that are computed together the oldest unfinished one streams; the others follow, each in one piece up to
/// where it stands.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool json) : json_(json) {}

  void expect(core::SequenceId id, const std::string& name);
  void text(core::SequenceId id, std::string_view text);
  void finished(core::SequenceId id, const core::Request& request, const core::Answer& answer,
                const commit::Body& body, const std::string& receipt_path,
                const engine::Validation& validation);
  void failed(core::SequenceId id);
  void finish();
  /// Whether text of an answer has begun to appear.
  bool streaming() const { return streaming_; }

 private:
  struct Shown {
    std::string name;
    std::string pending;
    std::string footer;
    bool begun = false;
    bool done = false;
  };
  void advance();

  bool json_;
  bool streaming_ = false;
  std::map<core::SequenceId, Shown> answers_;
};

}  // namespace fieldprint::cli
