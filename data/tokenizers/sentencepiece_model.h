#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace t2r::data {

/// What t2r reads of a sentencepiece model itself: libsentencepiece tells neither which pieces are
/// user-defined nor how it normalizes, and trusts the character map.
struct SentencePieceModel {
  enum class Type {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6
  };
  struct Piece {
    std::string text;
    float score = 0.0f;
    Type type = Type::kNormal;
  };
  static constexpr int kBpe = 2;

  std::vector<Piece> pieces;  ///< by id
  int model_type = 1;         ///< 1 unigram, 2 BPE, 3 word, 4 char
  bool byte_fallback = false;
  bool removes_extra_spaces = true;
  bool adds_prefix_space = true;
};

/// Reads a serialized model, and refuses one that libsentencepiece would crash on: broken wire
/// format, pieces that are empty, not UTF-8, longer than 64 KiB or more than 2^24, byte pieces that
/// name no byte, a character map whose trie or strings lead out of it.
/// @param file  name for messages
/// @throws DataError  names file, byte and rule
SentencePieceModel read_sentencepiece_model(std::string_view content, const std::string& file);

/// Whether a file begins as a sentencepiece model does, whatever its name.
bool begins_as_sentencepiece_model(std::string_view content);

}  // namespace t2r::data
