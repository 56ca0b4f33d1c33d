#pragma once

#include <optional>
#include <string>
#include <string_view>

/// What a client sends before a body (RFC 9112 §2.1), and the fields of it that a server of static resources
/// heeds.
namespace fieldprint::server {

struct RequestHead {
  std::string text;  ///< request line, fields and the empty line, without the fields that no answer heeds
  bool has_body = false;   ///< whether a body follows
  bool closes = false;     ///< whether the client wants no further answer on this connection
  bool malformed = false;  ///< to be refused: two parsers could see different lines in it
};

/// Takes the head off the front of what a connection has received; nothing until all of it is there. Fields
/// of ranges are left out, so that whole resources are answered, as RFC 9110 §14.2 lets a server do; and so
/// is Expect, because no body is read. A head is malformed where CR or LF stands alone, or NUL anywhere (RFC
/// 9112 §2.2, RFC 9110 §5.5): then nothing else is said of it.
std::optional<RequestHead> take_head(std::string& received);

/// Whether a value of Accept-Encoding (RFC 9110 §12.5.3) allows gzip.
bool accepts_gzip(std::string_view accept_encoding);

/// Whether a value of If-None-Match (RFC 9110 §13.1.2) names the entity tag, which is written with its
/// quotes.
bool names_tag(std::string_view if_none_match, std::string_view tag);

}  // namespace fieldprint::server
