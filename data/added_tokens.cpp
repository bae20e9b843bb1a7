#include "data/added_tokens.h"

#include <algorithm>
#include <utility>

#include "data/utf8.h"

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

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::ranges::sort(tokens_, {}, &AddedToken::id);
  std::vector<const AddedToken*> longest_first;
  for (const AddedToken& token : tokens_) longest_first.push_back(&token);
  std::ranges::stable_sort(longest_first, std::ranges::greater{}, [](const AddedToken* token) {
    return token->content.size();
  });
  for (const AddedToken* token : longest_first) {
    Pass& pass = token->normalized ? normalized_ : verbatim_;
    pass[static_cast<unsigned char>(token->content.at(0))].push_back(token);
  }
}

const AddedToken* AddedTokens::find_at(const Pass& pass, std::string_view text, size_t offset) {
  for (const AddedToken* token : pass[static_cast<unsigned char>(text[offset])]) {
    if (text.substr(offset).starts_with(token->content)) return token;
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
    const size_t begin = token->strips_left ? skip_white_space_back(text, taken, offset) : offset;
    offset += token->content.size();
    if (begin > taken) take_text(text.substr(taken, begin - taken));
    take_id(token->id);
    taken = token->strips_right ? skip_white_space(text, offset) : offset;
    offset = taken;
  }
  if (taken < text.size()) take_text(text.substr(taken));
}

void AddedTokens::split(std::string_view text,
                        const std::function<void(std::string_view)>& take_text,
                        const std::function<void(int32_t)>& take_id) const {
  const auto take_rest = [&](std::string_view rest) {
    split_pass(normalized_, rest, take_text, take_id);
  };
  split_pass(verbatim_, text, take_rest, take_id);
}

}  // namespace t2r::data
