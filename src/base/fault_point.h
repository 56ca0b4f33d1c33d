#pragma once

#include <cstddef>
#include <iterator>
#include <string_view>

#include "base/result.h"

/// Places at which tests let a process die or a call fail: one at every step that makes something durable. A
/// place that nobody armed costs one test of a flag that never changes.
///
/// Armed by the environment alone, for one pass through one place of one process:
///
///   FIELDPRINT_FAULT=kill:NAME:N   the N-th pass (from 1) ends the process as kill -9 does
///   FIELDPRINT_FAULT=stop:NAME:N   the N-th pass stops the process until it gets SIGCONT
///   FIELDPRINT_FAULT=fail:NAME:N   the N-th pass returns an error, where the place can
///
/// Do not set it where answers matter: no option, file or request can. A value that names no place ends the
/// process at once, one that does is announced on stderr, as is a pass that is stopped or fails, and programs
/// that run with more rights than their caller ignore the variable.
namespace fieldprint::fault {

struct Point {
  std::string_view name;
  bool can_fail = false;  ///< whether an error may be returned there: nothing has become durable yet
};

inline constexpr Point kPoints[] = {
    {"file.create.temporary_written", true},
    {"file.create.linked"},
    {"file.replace.temporary_written", true},
    {"file.replace.renamed"},
    {"key.before_creation", true},
    {"key.created"},
    {"receipt.before_creation", true},
    {"receipt.created"},
    {"receipt.complete"},
    {"store.schema.before_commit", true},
    {"store.schema.committed"},
    {"store.grow.before_write", true},
    {"store.grow.before_commit", true},
    {"store.grow.committed"},
    {"store.checkpoint.before_commit", true},
    {"store.checkpoint.committed"},
    {"log.before_acknowledgement"},
    {"anchor.before_record", true},
    {"anchor.recorded"},
    {"anchors.adopted"},
    {"commits.before_append", true},
    {"commits.recorded"},
    {"verdicts.recorded"},
};

consteval std::size_t index_of(std::string_view name, bool must_fail) {
  for (std::size_t i = 0; i < std::size(kPoints); ++i) {
    if (kPoints[i].name == name && (kPoints[i].can_fail || !must_fail)) return i;
  }
  throw "no such fault point, or none that can fail";
}

extern const bool kArmed;        ///< whether any place is
Status pass(std::size_t point);  ///< of a process that is armed

}  // namespace fieldprint::fault

/// A Status: an error if the place is armed to fail now.
#define FAULT_POINT(name)                                                                             \
  (::fieldprint::fault::kArmed ? ::fieldprint::fault::pass(::fieldprint::fault::index_of(name, true)) \
                               : ::fieldprint::Status())

/// A place where a process may die, but nothing may fail any more.
#define CRASH_POINT(name)                                                          \
  do {                                                                             \
    if (::fieldprint::fault::kArmed)                                               \
      (void)::fieldprint::fault::pass(::fieldprint::fault::index_of(name, false)); \
  } while (false)
