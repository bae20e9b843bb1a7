#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/tokenizer.h"
#include "data/tokenizers/tokenizer_config.h"

namespace t2r::data {

/// A sentencepiece model (unigram or BPE) through libsentencepiece.
///
/// encode() follows the model's own normalisation; each byte of invalid UTF-8 counts as U+FFFD.
/// decode() turns U+2581, sentencepiece's sign for a space, into a space: that character alone does
/// not survive a round trip through models of train_sentencepiece().
/// All methods may be called from several threads.
/// Source: Kudo and Richardson 2018
class SentencePieceTokenizer final : public Tokenizer {
 public:
  /// With a configuration beside the model (`config.files`), control pieces, the unknown piece and
  /// the configuration's added tokens are found in the text, as transformers finds them; they
  /// decode to their names. Without, the model is all: "<s>" in a text is three characters.
  /// @throws DataError  if the file is no sentencepiece model, or an added token's id is not free
  explicit SentencePieceTokenizer(const std::filesystem::path& model,
                                  const TokenizerConfig& config = {});
  ~SentencePieceTokenizer() override;

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<int32_t>& ids) const override;
  TokenPiece piece(int32_t id) const override;
  TextRules text_rules() const override;
  int64_t vocab_size() const override;

  /// The token that the configuration names; else the model's end-of-sentence piece.
  std::optional<int32_t> end_of_document() const override;

  /// If the configuration says add_bos_token.
  std::optional<int32_t> begin_of_text() const override;
  bool is_special(int32_t id) const override;

  /// Of pieces, kinds and scores by id, and of the ids of a probe that tells normalisations apart;
  /// with a configuration, of the tokens that are found in the text as well.
  std::string hash() const override;

  std::vector<std::filesystem::path> files() const override;

 private:
  struct Model;
  /// The library's own decoding.
  std::string decode_pieces(const std::vector<int32_t>& ids) const;
  /// Ids of a stretch without added tokens.
  void encode_stretch(std::string_view text, bool first, std::vector<int32_t>* ids) const;

  std::unique_ptr<Model> model_;
};

enum class SentencePieceType { kUnigram, kBpe };

/// What to train a sentencepiece model on, and how.
struct SentencePieceTraining {
  std::vector<std::filesystem::path> inputs;  ///< UTF-8, one sentence or paragraph a line
  std::filesystem::path output_model;         ///< written when complete; ends in .model or .spm
  int vocab_size = 8000;                      ///< with 3 control pieces, "\n" and 256 byte pieces
  SentencePieceType type = SentencePieceType::kUnigram;
  double character_coverage = 0.9995;  ///< (0, 1]; the rest is spelled in bytes
  uint64_t seed = 0;                   ///< kept for a trainer that samples; all lines are used
  int threads = 1;
};

/// Trains a model and writes it to output_model.
///
/// Pieces 0 <unk>, 1 <s>, 2 </s>, then "\n", the 256 bytes and what was learnt; no padding piece.
/// The text is not normalised and white space is kept, so that decode(encode(x)) == x: "\n" is a
/// piece of its own, rare characters are spelled in bytes, and a space put before the text is taken
/// off again. Deterministic: the same inputs, options and number of threads give the same file.
/// Trains one model at a time in a process (libsentencepiece's settings are global).
/// @throws ConfigError  if an option is out of range, or vocab_size does not fit the text; names
/// the
///                      field, its value and what is allowed
/// @throws DataError    if an input cannot be read, is not UTF-8 (file and offset), or no input has
///                      text
/// @throws WriteError   if the model cannot be written
void train_sentencepiece(const SentencePieceTraining& training);

}  // namespace t2r::data
