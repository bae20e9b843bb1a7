#include "data/tokenizers/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

size_t skip_white_space(std::string_view text, size_t offset) {
  while (offset < text.size()) {
    const Utf8Step step = read_utf8(text, offset);
    if (!is_white_space(step.code_point)) break;
    offset += step.num_bytes;
  }
  return offset;
}

/// Start of the white space that ends at `end`, no earlier than `begin`.
size_t skip_white_space_back(std::string_view text, size_t begin, size_t end) {
  while (end > begin) {
    size_t start = end - 1;
    while (start > begin && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_white_space(read_utf8(text, start).code_point)) break;
    end = start;
  }
  return end;
}

bool is_word_character(char32_t c) {
  if (c < 0x80)
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  if (c == 0x200C || c == 0x200D) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c >= 0x24B6 && c <= 0x24E9;  // circled letters: symbols that are Alphabetic
  }
}

/// Whether a word character touches the token at [begin, end).
bool is_inside_word(std::string_view text, size_t begin, size_t end) {
  if (end < text.size() && is_word_character(read_utf8(text, end).code_point)) return true;
  if (begin == 0) return false;
  size_t start = begin - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return is_word_character(read_utf8(text, start).code_point);
}

const std::string& sought_text(const AddedToken& token) {
  return token.sought.empty() ? token.content : token.sought;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::ranges::sort(tokens_, {}, &AddedToken::id);
  std::vector<const AddedToken*> longest_first;
  for (const AddedToken& token : tokens_) longest_first.push_back(&token);
  std::ranges::stable_sort(longest_first, std::ranges::greater{}, [](const AddedToken* token) {
    return sought_text(*token).size();
  });
  for (const AddedToken* token : longest_first) {
    Pass& pass = token->normalized ? normalized_ : verbatim_;
    pass[static_cast<unsigned char>(sought_text(*token).at(0))].push_back(token);
  }
}

const AddedToken* AddedTokens::find_at(const Pass& pass, std::string_view text, size_t offset) {
  for (const AddedToken* token : pass[static_cast<unsigned char>(text[offset])]) {
    if (text.substr(offset).starts_with(sought_text(*token))) return token;
  }
  return nullptr;
}

void AddedTokens::split_pass(const Pass& pass,
                             std::string_view text,
                             const std::function<void(std::string_view)>& take_text,
                             const std::function<void(int32_t)>& take_id) {
  size_t taken = 0;
  for (size_t offset = 0; offset < text.size();) {
    const AddedToken* token = find_at(pass, text, offset);
    if (token == nullptr) {
      ++offset;
      continue;
    }
    const size_t end = offset + sought_text(*token).size();
    if (token->single_word && is_inside_word(text, offset, end)) {
      offset = end;
      continue;
    }
    const size_t begin = token->strips_left ? skip_white_space_back(text, taken, offset) : offset;
    offset = end;
    if (begin > taken) take_text(text.substr(taken, begin - taken));
    take_id(token->id);
    taken = token->strips_right ? skip_white_space(text, offset) : offset;
    offset = taken;
  }
  if (taken < text.size()) take_text(text.substr(taken));
}

}  // namespace t2r::data
