#include "data/tokenizers/stream_decoder.h"

#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Whether the bytes from `offset` to the end could become a character when more follow.
bool is_unfinished(std::string_view text, size_t offset) {
  const Utf8Step step = read_utf8(text, offset);
  if (step.valid || offset + step.num_bytes < text.size()) return false;
  const auto lead = static_cast<unsigned char>(text[offset]);
  const size_t wanted = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  return lead >= 0xC2 && lead <= 0xF4 && step.num_bytes < wanted;
}

}  // namespace

std::string StreamDecoder::add(int32_t id) {
  TokenPiece piece = tokenizer_.piece(id);
  switch (piece.kind) {
    case TokenPiece::Kind::kNone:
      return "";
    case TokenPiece::Kind::kByte:
      run_ += piece.text;
      return rules_.judges_byte_runs_whole ? "" : take_text(take_characters(false), false);
    case TokenPiece::Kind::kText:
      break;
  }
  std::string text = close_run();
  text += take_text(piece.text, !piece.keeps_spaces);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = close_run();
  text += take_complete(true);
  return text;
}

std::string StreamDecoder::close_run() {
  if (!rules_.judges_byte_runs_whole || find_invalid_utf8(run_) == run_.size()) {
    return take_text(take_characters(true), rules_.judges_byte_runs_whole);
  }
  std::string replaced;
  for (size_t i = 0; i < run_.size(); ++i) replaced += kReplacement;
  run_.clear();
  return take_text(replaced, false);
}

/// From the run of byte pieces: its characters, and U+FFFD for each byte that belongs to none.
std::string StreamDecoder::take_characters(bool all) {
  std::string text;
  size_t offset = 0;
  while (offset < run_.size() && (all || !is_unfinished(run_, offset))) {
    const Utf8Step step = read_utf8(run_, offset);
    if (step.valid) text.append(run_, offset, step.num_bytes);
    for (size_t i = 0; !step.valid && i < step.num_bytes; ++i) text += kReplacement;
    offset += step.num_bytes;
  }
  run_.erase(0, offset);
  return text;
}

std::string StreamDecoder::take_text(std::string_view bytes, bool may_strip) {
  if (bytes.empty()) return "";
  const bool strips = at_start_ && may_strip && bytes.front() == ' ';
  if (strips && (rules_.strips_first_space || rules_.strips_leading_spaces)) {
    bytes.remove_prefix(1);
    while (rules_.strips_leading_spaces && bytes.starts_with(' ')) bytes.remove_prefix(1);
    at_start_ = rules_.strips_leading_spaces && bytes.empty();
  } else {
    at_start_ = false;
  }
  waiting_ += bytes;
  return take_complete(false);
}

std::string StreamDecoder::take_complete(bool all) {
  std::string text;
  size_t offset = 0;
  while (offset < waiting_.size()) {
    if (!all && is_unfinished(waiting_, offset)) break;
    const Utf8Step step = read_utf8(waiting_, offset);
    if (step.valid) {
      text.append(waiting_, offset, step.num_bytes);
    } else {
      text += kReplacement;
    }
    offset += step.num_bytes;
  }
  waiting_.erase(0, offset);
  return text;
}

}  // namespace t2r::data
