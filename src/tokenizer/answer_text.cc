#include "tokenizer/answer_text.h"

#include <algorithm>

namespace fieldprint::tokenizer {

AnswerText::Piece AnswerText::push(std::int32_t token) {
  if (!tokenizer_->is_end_of_generation(token)) return match(decoder_.push(token));
  Piece rest = flush();
  rest.ended = true;
  return rest;
}

AnswerText::Piece AnswerText::finish() { return flush(); }

AnswerText::Piece AnswerText::flush() {
  Piece rest = match(decoder_.finish());
  if (!rest.ended) rest.text += held_;
  held_.clear();
  return rest;
}

AnswerText::Piece AnswerText::match(std::string_view text) {
  held_ += text;
  std::size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  if (first != std::string::npos) return {held_.substr(0, first), true};
  // Keep the longest end that begins some stop string.
  std::size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.ends_with(std::string_view(stop).substr(0, length))) keep = length;
    }
  }
  Piece piece{held_.substr(0, held_.size() - keep), false};
  held_.erase(0, piece.text.size());
  return piece;
}

}  // namespace fieldprint::tokenizer
