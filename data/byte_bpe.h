#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/byte_bpe_reader.h"
#include "data/tokenizer.h"

namespace t2r::data {

/// Byte-level byte-pair encoding, as GPT-2 and SmolLM2 use it: ids equal Hugging Face tokenizers'.
///
/// encode() cuts the text at the added tokens, the stretches between them at the pre-tokenizer's
/// patterns, and merges the bytes of each piece, best pair first. A byte that has no token (control
/// characters in SmolLM2's vocabulary) is dropped, as Hugging Face does; a warning says so once.
/// Invalid UTF-8 counts as U+FFFD, one for each maximal subpart (utf8.h); NUL is a byte like
/// others. decode() gives bytes: cut in the middle of a character, they are no valid UTF-8. Added
/// tokens decode to their content.
///
/// vocab_size() is the highest id + 1; ids may have holes, which decode to nothing.
/// All methods may be called from several threads.
/// Source: Sennrich et al. 2016; Radford et al. 2019, section 2.2;
///         huggingface/tokenizers models/bpe/word.rs (order of merges)
class ByteBpe final : public Tokenizer {
 public:
  /// @throws DataError  if a pattern of the pre-tokenizer does not compile
  explicit ByteBpe(ByteBpeDefinition definition);
  ~ByteBpe() override;

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
  TokenPiece piece(int32_t id) const override;
  int64_t vocab_size() const override;

  /// <|endoftext|>; else the added token </s>, else <eos>.
  std::optional<int32_t> end_of_document() const override;

  std::string hash() const override;
  std::vector<std::filesystem::path> files() const override;

 private:
  struct Rules;
  class Encoder;
  struct EncoderPool;
  std::unique_ptr<Rules> rules_;
  std::unique_ptr<EncoderPool> encoders_;
};

}  // namespace t2r::data
