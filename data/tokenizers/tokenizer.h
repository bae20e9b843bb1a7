#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

/// What one token stands for in a text.
struct TokenPiece {
  enum class Kind {
    kNone,  ///< no such token, or one that decodes to nothing
    kText,  ///< bytes of the text; of a byte-level tokenizer any bytes, also parts of a character
    kByte,  ///< one byte of a character that is spelled in bytes (<0xE6>)
  };
  Kind kind = Kind::kNone;
  std::string text;
  bool keeps_spaces = false;  ///< TextRules take nothing off it
};

/// How pieces become a text, beyond standing one after the other.
struct TextRules {
  bool strips_first_space = false;     ///< the one that encode() puts before a text
  bool strips_leading_spaces = false;  ///< all before the first other character
  /// Consecutive byte pieces are text if all of them together are valid UTF-8, else each is U+FFFD
  /// (Hugging Face's ByteFallback); otherwise each character is judged for itself (sentencepiece).
  bool judges_byte_runs_whole = false;
};

/// Text to token ids and back; what every tokenizer of the project offers.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of `text` without any begin or end token added. Any byte sequence is accepted or refused
  /// by the implementation's documented rule; an empty text gives no ids.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  /// Text of `ids`. Inverse of encode() up to the tokenizer's own normalisation. An id without a
  /// token, also one of vocab_size() and above (models with more rows than tokens), gives nothing.
  /// Tokens one at a time: StreamDecoder.
  /// @throws DataError  if an id is negative
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;

  /// @throws DataError  if `id` is negative
  virtual TokenPiece piece(int32_t id) const {
    return {.kind = TokenPiece::Kind::kText, .text = decode({id})};
  }
  virtual TextRules text_rules() const { return {}; }

  virtual int64_t vocab_size() const = 0;

  /// Token that ends a document; empty if the vocabulary has none.
  virtual std::optional<int32_t> end_of_document() const = 0;

  /// Token that the tokenizer's own configuration puts in front of a text; empty if none. encode()
  /// does not add it.
  virtual std::optional<int32_t> begin_of_text() const { return std::nullopt; }

  /// Whether a token is a sign between texts and no part of one: what transformers leaves out with
  /// skip_special_tokens. decode() writes it.
  virtual bool is_special(int32_t /*id*/) const { return false; }

  /// Content hash of the vocabulary and its rules: equal for every file form of the same tokenizer.
  /// Shards and models carry it, so that those that do not belong together are refused.
  virtual std::string hash() const = 0;

  /// Files to copy beside a model so that it can be loaded again.
  virtual std::vector<std::filesystem::path> files() const = 0;
};

/// The sentencepiece models in a folder, by name or content, sorted.
std::vector<std::filesystem::path> sentencepiece_files(const std::filesystem::path& folder);

/// Compares the files that open_tokenizer() reads with the manifest that t2r wrote beside them, if
/// it did.
/// @throws DataError  if one differs, or is listed and missing; names it
void verify_tokenizer_files(const std::filesystem::path& path);

/// Opens the tokenizer in a folder or file: tokenizer.json, vocab.json + merges.txt, encoder.json +
/// vocab.bpe (byte-level BPE), or a sentencepiece model of any name. tokenizer_config.json,
/// special_tokens_map.json and added_tokens.json beside it are read as well. A tokenizer.json of a
/// kind that is not supported gives way, in one line, to a sentencepiece model beside it.
/// @throws ConfigError  if nothing that is known is there; names what was looked for
/// @throws DataError    if a file breaks its format
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& path);

}  // namespace t2r::data
