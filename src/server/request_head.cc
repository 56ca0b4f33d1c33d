#include "server/request_head.h"

#include <algorithm>

namespace fieldprint::server {
namespace {

constexpr std::string_view kLineEnd = "\r\n";
constexpr std::string_view kHeadEnd = "\r\n\r\n";

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool same_word(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return lower(x) == lower(y); });
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// Takes what comes before the mark, or all that is left, off the front.
std::string_view take_until(std::string_view& rest, char mark) {
  const std::size_t end = std::min(rest.find(mark), rest.size());
  const std::string_view part = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return part;
}

// A weight (RFC 9110 §12.4.2) of zero, which forbids what it belongs to.
bool forbids(std::string_view parameters) {
  while (!parameters.empty()) {
    std::string_view value = trimmed(take_until(parameters, ';'));
    if (!same_word(trimmed(take_until(value, '=')), "q")) continue;
    value = trimmed(value);
    return !value.empty() && value.find_first_not_of("0.") == std::string_view::npos;
  }
  return false;
}

// Whether lines end where a parser that knows LF alone, or CR alone, ends them too.
bool lines_are_plain(std::string_view head) {
  for (std::size_t i = 0; i < head.size(); ++i) {
    if (head[i] == '\0') return false;
    if (head[i] == '\r' && (i + 1 == head.size() || head[i + 1] != '\n')) return false;
    if (head[i] == '\n' && (i == 0 || head[i - 1] != '\r')) return false;
  }
  return true;
}

bool lists_word(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    if (same_word(trimmed(take_until(list, ',')), word)) return true;
  }
  return false;
}

}  // namespace

std::optional<RequestHead> take_head(std::string& received) {
  // RFC 9112 §2.2: empty lines before a request are passed over.
  std::size_t begin = 0;
  while (received.compare(begin, kLineEnd.size(), kLineEnd) == 0) begin += kLineEnd.size();
  received.erase(0, begin);
  const std::size_t end = received.find(kHeadEnd);
  if (end == std::string::npos) return std::nullopt;
  RequestHead head;
  std::string_view rest = std::string_view(received).substr(0, end + kLineEnd.size());
  if (!lines_are_plain(rest)) {
    head.malformed = true;
    received.erase(0, end + kHeadEnd.size());
    return head;
  }
  for (bool first = true; !rest.empty(); first = false) {
    const std::string_view line = rest.substr(0, rest.find(kLineEnd));
    rest.remove_prefix(line.size() + kLineEnd.size());
    std::string_view value = line;
    const std::string_view name = first ? std::string_view() : trimmed(take_until(value, ':'));
    const auto is = [&](std::string_view other) { return same_word(name, other); };
    if (is("Content-Length") || is("Transfer-Encoding")) head.has_body = true;
    if (is("Connection") && lists_word(value, "close")) head.closes = true;
    if (is("Range") || is("If-Range") || is("Expect")) continue;
    head.text += line;
    head.text += kLineEnd;
  }
  head.text += kLineEnd;
  received.erase(0, end + kHeadEnd.size());
  return head;
}

bool accepts_gzip(std::string_view accept_encoding) {
  bool any = false;
  while (!accept_encoding.empty()) {
    std::string_view parameters = take_until(accept_encoding, ',');
    const std::string_view coding = trimmed(take_until(parameters, ';'));
    if (same_word(coding, "gzip") || same_word(coding, "x-gzip")) return !forbids(parameters);
    if (coding == "*") any = !forbids(parameters);
  }
  return any;
}

bool names_tag(std::string_view if_none_match, std::string_view tag) {
  if (trimmed(if_none_match) == "*") return true;
  while (!if_none_match.empty()) {
    std::string_view candidate = trimmed(take_until(if_none_match, ','));
    // The comparison is the weak one.
    if (candidate.starts_with("W/")) candidate.remove_prefix(2);
    if (candidate == tag) return true;
  }
  return false;
}

}  // namespace fieldprint::server
