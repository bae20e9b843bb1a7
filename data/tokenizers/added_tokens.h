#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

/// A token that is found in the text as it stands, before any byte-pair merge.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool normalized = false;    ///< looked for in the normalized text between the others
  bool strips_left = false;   ///< takes the white space before it along
  bool strips_right = false;  ///< takes the white space after it along
  bool single_word = false;   ///< not where a letter, mark, digit or _ touches it
  std::string sought = {};    ///< what is looked for in the normalized text; empty: the content
  bool special = false;       ///< a sign between texts, which is left out of what people read
};

/// Finds added tokens in a text, leftmost first and the longest of those that start together.
/// Source: huggingface/tokenizers tokenizer/added_vocabulary.rs (split_with_indices)
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);
  AddedTokens(AddedTokens&&) = default;  // a copy's passes would point into the original
  AddedTokens& operator=(AddedTokens&&) = default;

  /// Calls `take_text` for every non-empty stretch without a token that is not normalized, and
  /// `take_id` for every such token, in the order of the text.
  void split(std::string_view text,
             const std::function<void(std::string_view)>& take_text,
             const std::function<void(int32_t)>& take_id) const {
    split_pass(verbatim_, text, take_text, take_id);
  }

  /// The same for a normalized stretch and the tokens that are normalized.
  void split_normalized(std::string_view text,
                        const std::function<void(std::string_view)>& take_text,
                        const std::function<void(int32_t)>& take_id) const {
    split_pass(normalized_, text, take_text, take_id);
  }

  /// In the order of their ids.
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  /// Tokens of one pass by their first byte, longest first.
  using Pass = std::array<std::vector<const AddedToken*>, 256>;

  static const AddedToken* find_at(const Pass& pass, std::string_view text, size_t offset);
  static void split_pass(const Pass& pass,
                         std::string_view text,
                         const std::function<void(std::string_view)>& take_text,
                         const std::function<void(int32_t)>& take_id);

  std::vector<AddedToken> tokens_;
  Pass verbatim_;
  Pass normalized_;
};

}  // namespace t2r::data
