#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/bpe_definition.h"
#include "data/tokenizers/tokenizer.h"

namespace t2r::data {

struct BpeRules;

/// Byte-pair encoding, on bytes (GPT-2, Llama 3) or on characters with byte fallback (Llama 2): ids
/// equal Hugging Face tokenizers'.
///
/// encode() cuts the text at the added tokens, normalizes the stretches between them, cuts those at
/// the pre-tokenizer's patterns, and merges the bytes or characters of each piece, best pair first.
/// A byte that has no token (control characters in SmolLM2's vocabulary) is dropped, as Hugging
/// Face does; a warning says so once. Invalid UTF-8 counts as U+FFFD, one for each maximal subpart
/// (utf8.h); NUL is a byte like others. decode() gives bytes: cut in the middle of a character,
/// they are no valid UTF-8. Added tokens decode to their content.
///
/// vocab_size() is the highest id + 1; ids may have holes, which decode to nothing.
/// All methods may be called from several threads.
/// Source: Sennrich et al. 2016; Radford et al. 2019, section 2.2;
///         huggingface/tokenizers models/bpe/word.rs (order of merges), models/bpe/model.rs
class Bpe final : public Tokenizer {
 public:
  /// @throws DataError  if a pattern of the pre-tokenizer does not compile
  explicit Bpe(BpeDefinition definition);
  ~Bpe() override;

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
  TokenPiece piece(int32_t id) const override;
  int64_t vocab_size() const override;

  TextRules text_rules() const override;

  /// The one that the configuration names; else <|endoftext|>, the added token </s>, or <eos>.
  std::optional<int32_t> end_of_document() const override;
  std::optional<int32_t> begin_of_text() const override;
  bool is_special(int32_t id) const override;

  std::string hash() const override;
  std::vector<std::filesystem::path> files() const override;

 private:
  struct EncoderPool;

  /// Encodes what stands between added tokens that are not normalized.
  /// @param first  the stretch begins the text
  void encode_stretch(std::string_view normalized,
                      bool first,
                      const std::function<void(std::string_view)>& take_piece,
                      const std::function<void(int32_t)>& take_id) const;

  std::unique_ptr<BpeRules> rules_;
  std::unique_ptr<EncoderPool> encoders_;
};

}  // namespace t2r::data
