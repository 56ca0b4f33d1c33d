#include "server/gzip.h"

#define ZLIB_CONST
#include <zlib.h>

#include <new>

#include "base/check.h"

namespace fieldprint::server {
namespace {

constexpr int kLevel = 1;                    // records are mostly digests, of which more effort makes nothing
constexpr int kGzipWindow = MAX_WBITS + 16;  // zlib.h: 16 more ask for a gzip header
constexpr int kMemory = 8;                   // zlib's default

}  // namespace

std::string gzip(std::string_view bytes) {
  z_stream stream{};
  const int begun = ::deflateInit2(&stream, kLevel, Z_DEFLATED, kGzipWindow, kMemory, Z_DEFAULT_STRATEGY);
  if (begun == Z_MEM_ERROR) throw std::bad_alloc();
  CHECK(begun == Z_OK, "zlib begins with {}", begun);
  std::string packed(::deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<const Bytef*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  const int ended = ::deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  ::deflateEnd(&stream);
  CHECK(ended == Z_STREAM_END, "zlib ended with {}", ended);
  return packed;
}

}  // namespace fieldprint::server
