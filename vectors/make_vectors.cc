/// Writes the golden vectors as the scalar backend computes them.
///   make_vectors FILE           writes FILE
///   make_vectors --check FILE   exit status 1 if FILE holds anything else

#include <cstdio>
#include <string>
#include <string_view>

#include "backend/select.h"
#include "base/bounds.h"
#include "base/file.h"
#include "vectors/golden.h"

namespace {

int report(const fieldprint::Error& error) {
  std::fprintf(stderr, "make_vectors: %s\n", error.message.c_str());
  return error.kind == fieldprint::ErrorKind::kEnvironment ? 3 : 2;
}

int check(const std::string& path, const std::string& made) {
  const auto file = fieldprint::read_file(path, fieldprint::bounds::kMaxTextBytes);
  if (!file) return report(file.error());
  if (std::string_view(reinterpret_cast<const char*>(file->data()), file->size()) == made) return 0;
  std::fprintf(stderr, "make_vectors: %s is not what this program makes\n", path.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const bool checking = argc == 3 && std::string_view(argv[1]) == "--check";
  if (argc != 2 && !checking) {
    std::fprintf(stderr, "usage: make_vectors [--check] FILE\n");
    return 2;
  }
  auto backend = fieldprint::backend::select_backend("scalar", 1);
  if (!backend) return report(backend.error());
  const std::string made = fieldprint::vectors::to_json(fieldprint::vectors::compute(**backend));
  if (checking) return check(argv[2], made);
  const fieldprint::Status status = fieldprint::write_file_atomically(argv[1], made);
  return status ? 0 : report(status.error());
}
