#include "crash/recording_vfs.h"

#include <sqlite3.h>

#include <algorithm>
#include <cstddef>
#include <new>

#include "base/check.h"

namespace fieldprint::crash {
namespace {

RecordingVfs* recorder = nullptr;
sqlite3_vfs* system_vfs = nullptr;

// The system's file lies behind it in memory.
struct File {
  sqlite3_file base;
  std::string* name;  // none: not recorded

  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

File& of(sqlite3_file* file) { return *reinterpret_cast<File*>(file); }
sqlite3_file* real(sqlite3_file* file) { return of(file).real(); }

int record(sqlite3_file* file, Call call, const std::function<int(bool)>& perform) {
  if (of(file).name == nullptr) return perform(false);
  call.file = *of(file).name;
  return recorder->record(std::move(call), perform);
}

int close_file(sqlite3_file* file) {
  delete of(file).name;
  return real(file)->pMethods->xClose(real(file));
}

int write_file(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  return record(file, {Call::kWrite, {}, offset, Bytes(bytes, bytes + size)}, [&](bool fail) {
    const int done = real(file)->pMethods->xWrite(real(file), data, fail ? size / 2 : size, offset);
    return fail ? SQLITE_FULL : done;
  });
}

int truncate_file(sqlite3_file* file, sqlite3_int64 size) {
  return record(file, {Call::kTruncate, {}, size}, [&](bool fail) {
    return fail ? SQLITE_IOERR_TRUNCATE : real(file)->pMethods->xTruncate(real(file), size);
  });
}

int sync_file(sqlite3_file* file, int flags) {
  return record(file, {Call::kSync}, [&](bool fail) {
    return fail ? SQLITE_IOERR_FSYNC : real(file)->pMethods->xSync(real(file), flags);
  });
}

sqlite3_io_methods methods() {
  sqlite3_io_methods m{};
  m.iVersion = 2;
  m.xClose = close_file;
  m.xRead = [](sqlite3_file* f, void* to, int n, sqlite3_int64 at) {
    return real(f)->pMethods->xRead(real(f), to, n, at);
  };
  m.xWrite = write_file;
  m.xTruncate = truncate_file;
  m.xSync = sync_file;
  m.xFileSize = [](sqlite3_file* f, sqlite3_int64* size) {
    return real(f)->pMethods->xFileSize(real(f), size);
  };
  m.xLock = [](sqlite3_file* f, int lock) { return real(f)->pMethods->xLock(real(f), lock); };
  m.xUnlock = [](sqlite3_file* f, int lock) { return real(f)->pMethods->xUnlock(real(f), lock); };
  m.xCheckReservedLock = [](sqlite3_file* f, int* out) {
    return real(f)->pMethods->xCheckReservedLock(real(f), out);
  };
  m.xFileControl = [](sqlite3_file* f, int op, void* arg) {
    return real(f)->pMethods->xFileControl(real(f), op, arg);
  };
  m.xSectorSize = [](sqlite3_file* f) { return real(f)->pMethods->xSectorSize(real(f)); };
  m.xDeviceCharacteristics = [](sqlite3_file* f) {
    return real(f)->pMethods->xDeviceCharacteristics(real(f));
  };
  m.xShmMap = [](sqlite3_file* f, int region, int size, int extend, void volatile** out) {
    return real(f)->pMethods->xShmMap(real(f), region, size, extend, out);
  };
  m.xShmLock = [](sqlite3_file* f, int at, int n, int flags) {
    return real(f)->pMethods->xShmLock(real(f), at, n, flags);
  };
  m.xShmBarrier = [](sqlite3_file* f) { real(f)->pMethods->xShmBarrier(real(f)); };
  m.xShmUnmap = [](sqlite3_file* f, int remove) { return real(f)->pMethods->xShmUnmap(real(f), remove); };
  return m;
}

std::string last_part(const char* path) {
  const std::string text(path);
  return text.substr(text.rfind('/') + 1);
}

int open_file(sqlite3_vfs*, const char* path, sqlite3_file* file, int flags, int* out_flags) {
  static const sqlite3_io_methods kMethods = methods();
  File& mine = of(file);
  mine.name = nullptr;
  const int code = system_vfs->xOpen(system_vfs, path, mine.real(), flags, out_flags);
  // SQLite closes a file only if it has methods.
  mine.base.pMethods = mine.real()->pMethods == nullptr ? nullptr : &kMethods;
  constexpr int kRecorded = SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL;
  if (code == SQLITE_OK && path != nullptr && (flags & kRecorded) != 0) {
    mine.name = new std::string(last_part(path));
    return recorder->record({Call::kOpen, *mine.name}, [](bool) { return SQLITE_OK; });
  }
  return code;
}

int delete_file(sqlite3_vfs*, const char* path, int sync) {
  return recorder->record({Call::kDelete, last_part(path)},
                          [&](bool) { return system_vfs->xDelete(system_vfs, path, sync); });
}

sqlite3_vfs& recording() {
  static sqlite3_vfs vfs{};
  vfs = *system_vfs;
  vfs.szOsFile = static_cast<int>(sizeof(File)) + system_vfs->szOsFile;
  vfs.pNext = nullptr;
  vfs.zName = "recording";
  vfs.xOpen = open_file;
  vfs.xDelete = delete_file;
  return vfs;
}

void apply(Bytes& file, const Call& call, std::size_t length) {
  if (call.kind == Call::kTruncate) {
    file.resize(static_cast<std::size_t>(call.offset));
    return;
  }
  const auto end = static_cast<std::size_t>(call.offset) + length;
  if (file.size() < end) file.resize(end);
  std::copy_n(call.bytes.begin(), length, file.begin() + call.offset);
}

// What reaches the disk of writes that nothing has flushed.
void settle(Bytes& file, const std::vector<const Call*>& pending, Loss loss, std::mt19937_64& random) {
  for (const Call* one : pending) {
    const bool kept = loss == Loss::kNone || (loss != Loss::kAll && random() % 2 == 0);
    if (!kept) continue;
    const bool torn = loss == Loss::kTorn && !one->bytes.empty() && random() % 2 == 0;
    apply(file, *one, torn ? random() % one->bytes.size() : one->bytes.size());
  }
}

}  // namespace

RecordingVfs::RecordingVfs() {
  CHECK(recorder == nullptr);
  recorder = this;
  system_vfs = sqlite3_vfs_find(nullptr);
  CHECK(sqlite3_vfs_register(&recording(), 1) == SQLITE_OK);
}

RecordingVfs::~RecordingVfs() {
  sqlite3_vfs_unregister(sqlite3_vfs_find("recording"));
  CHECK(sqlite3_vfs_register(system_vfs, 1) == SQLITE_OK);
  recorder = nullptr;
}

std::size_t RecordingVfs::count() const {
  const std::lock_guard lock(mutex_);
  return calls_.size();
}

std::vector<Call> RecordingVfs::calls() const {
  const std::lock_guard lock(mutex_);
  return calls_;
}

void RecordingVfs::fail_at(std::size_t number) {
  const std::lock_guard lock(mutex_);
  fail_at_ = number;
}

std::optional<std::size_t> RecordingVfs::failed_after() const {
  const std::lock_guard lock(mutex_);
  return failed_after_;
}

int RecordingVfs::record(Call call, const std::function<int(bool fail)>& perform) {
  const std::lock_guard lock(mutex_);
  const bool can_fail = call.kind != Call::kOpen && call.kind != Call::kDelete;
  const bool fail = can_fail && could_fail_++ == fail_at_;
  if (fail) failed_after_ = calls_.size();
  const int code = perform(fail);
  if (fail && call.kind == Call::kTruncate) return code;
  if (fail && call.kind == Call::kWrite) call.bytes.resize(call.bytes.size() / 2);
  if (fail && call.kind == Call::kSync) call.kind = Call::kFailedSync;
  calls_.push_back(std::move(call));
  return code;
}

std::map<std::string, Bytes> after_power_cut(const std::vector<Call>& calls, std::size_t count, Loss loss,
                                             std::mt19937_64& random) {
  std::map<std::string, Bytes> files;
  std::map<std::string, std::vector<const Call*>> pending;
  for (std::size_t i = 0; i < count; ++i) {
    const Call& call = calls[i];
    if (call.kind == Call::kOpen) {
      files[call.file];
    } else if (call.kind == Call::kDelete) {
      files.erase(call.file);
      pending.erase(call.file);
    } else if (call.kind == Call::kSync || call.kind == Call::kFailedSync) {
      settle(files[call.file], pending[call.file], call.kind == Call::kSync ? Loss::kNone : loss, random);
      pending.erase(call.file);
    } else {
      pending[call.file].push_back(&call);
    }
  }
  for (const auto& [name, writes] : pending) settle(files[name], writes, loss, random);
  return files;
}

}  // namespace fieldprint::crash
