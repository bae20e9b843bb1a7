#include "data/tokenizers/sentencepiece_model.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/error.h"
#include "base/foreign_file.h"
#include "base/quoted_name.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 24;
constexpr size_t kMaxPieceBytes = size_t{1} << 16;
constexpr size_t kMaxReplacementBytes = 1024;  // of one character; the longest in use has 33

/// A field of a protocol buffer message, with its value where it is a number.
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;     ///< of a varint or a fixed 32-bit field
  std::string_view text;  ///< of a field with a length
};

/// Goes through the fields of a message.
class Message {
 public:
  Message(std::string_view whole, std::string_view bytes, const std::string& file)
      : whole_(whole), rest_(bytes), file_(file) {}

  [[noreturn]] void refuse(const std::string& rule) const {
    const auto offset = static_cast<size_t>(rest_.data() - whole_.data());
    throw DataError(concat(file_, ": not a sentencepiece model: byte ", offset, ": ", rule));
  }

  bool next(Field* field) {
    if (rest_.empty()) return false;
    const uint64_t key = take_varint();
    *field = {.number = key >> 3, .value = 0, .text = {}};
    if (field->number == 0) refuse("a field without number");
    switch (key & 7) {
      case 0:
        field->value = take_varint();
        return true;
      case 1:
        take_bytes(8);
        return true;
      case 2:
        field->text = take_bytes(take_varint());
        return true;
      case 5: {
        uint32_t bits = 0;
        std::memcpy(&bits, take_bytes(sizeof(bits)).data(), sizeof(bits));
        field->value = bits;
        return true;
      }
      default:
        refuse("a field of an unknown kind");
    }
  }

  Message inside(std::string_view bytes) const { return {whole_, bytes, file_}; }

 private:
  uint64_t take_varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) refuse("cut in a number");
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    refuse("a number of more than 64 bits");
  }

  std::string_view take_bytes(uint64_t size) {
    if (size > rest_.size())
      refuse(concat(size, " bytes are announced, ", rest_.size(), " are there"));
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }

  std::string_view whole_;
  std::string_view rest_;
  const std::string& file_;
};

bool is_hex_digit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F');
}

bool names_a_byte(std::string_view text) {
  return text.size() == 6 && text.starts_with("<0x") && text.ends_with('>') &&
         is_hex_digit(text[3]) && is_hex_digit(text[4]);
}

SentencePieceModel::Piece read_piece(Message message) {
  SentencePieceModel::Piece piece;
  Field field;
  while (message.next(&field)) {
    if (field.number == 1) piece.text = field.text;
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number == 3) {
      if (field.value < 1 || field.value > 6)
        message.refuse(concat("a piece of type ", field.value));
      piece.type = static_cast<SentencePieceModel::Type>(field.value);
    }
    if (field.number == 1 && field.text.size() > kMaxPieceBytes) {
      message.refuse(concat("a piece of ", field.text.size(), " bytes; allowed: ", kMaxPieceBytes));
    }
  }
  const std::string_view text = piece.text;
  if (text.empty()) message.refuse("an empty piece");
  if (find_invalid_utf8(text) < text.size() || text.find('\0') != std::string_view::npos) {
    message.refuse(concat("piece ", quoted_name(text), " is not UTF-8 without NUL"));
  }
  if (!std::isfinite(piece.score)) {
    message.refuse(concat("piece ", quoted_name(text), " has a score that is not finite"));
  }
  if (piece.type == SentencePieceModel::Type::kByte && !names_a_byte(text)) {
    message.refuse(concat("byte piece ", quoted_name(text), "; allowed: <0x00> to <0xFF>"));
  }
  return piece;
}

/// The map's trie, an array of darts-clone units: a lookup goes from a unit to
/// position ^ offset ^ byte, and nothing in the library keeps it inside of the array.
class CharacterMap {
 public:
  CharacterMap(const Message& message, std::string_view units, std::string_view strings)
      : message_(message),
        units_(units),
        strings_(strings),
        seen_(units.size() / sizeof(uint32_t)) {}

  void check() {
    std::vector<size_t> open = {visit(0)};
    while (!open.empty()) {
      const size_t base = open.back();
      open.pop_back();
      for (uint32_t label = 0; label < 256; ++label) {
        const size_t child = base ^ label;
        if (child >= seen_.size()) message_.refuse("the character map's trie leads out of it");
        if ((unit(child) & 0x800000FFu) != label || seen_[child]) continue;
        open.push_back(visit(child));
      }
    }
  }

 private:
  uint32_t unit(size_t index) const {
    uint32_t value = 0;
    std::memcpy(&value, units_.data() + index * sizeof(value), sizeof(value));
    return value;
  }

  /// Where the children of a unit begin; checks the value of one that ends a key.
  size_t visit(size_t index) {
    seen_[index] = true;
    const uint32_t bits = unit(index);
    const size_t base = index ^ ((bits >> 10) << ((bits & (1u << 9)) >> 6));
    if (base >= seen_.size()) message_.refuse("the character map's trie leads out of it");
    if (((bits >> 8) & 1) != 0) check_value(unit(base) & 0x7FFFFFFFu);
    return base;
  }

  void check_value(size_t offset) const {
    const size_t end =
        offset < strings_.size() ? strings_.find('\0', offset) : std::string_view::npos;
    if (end == std::string_view::npos || end - offset > kMaxReplacementBytes) {
      message_.refuse("the character map's strings end before a replacement does");
    }
    const std::string_view replacement = strings_.substr(offset, end - offset);
    if (find_invalid_utf8(replacement) < replacement.size()) {
      message_.refuse("a replacement of the character map is not UTF-8");
    }
  }

  const Message& message_;
  std::string_view units_;
  std::string_view strings_;
  std::vector<bool> seen_;
};

/// Size of the trie in bytes (32 bits), the trie, and strings that end with NUL.
void check_character_map(const Message& message, std::string_view map) {
  if (map.empty()) return;
  uint32_t trie_bytes = 0;
  if (map.size() < sizeof(trie_bytes)) message.refuse("the character map is cut");
  std::memcpy(&trie_bytes, map.data(), sizeof(trie_bytes));
  map.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0 || trie_bytes >= map.size()) {
    message.refuse(concat("the character map's trie of ", trie_bytes, " bytes does not fit it"));
  }
  CharacterMap(message, map.substr(0, trie_bytes), map.substr(trie_bytes)).check();
}

void read_normalizer(Message message, SentencePieceModel* model) {
  Field field;
  while (message.next(&field)) {
    if (field.number == 2) check_character_map(message, field.text);
    if (field.number == 3) model->adds_prefix_space = field.value != 0;
    if (field.number == 4) model->removes_extra_spaces = field.value != 0;
  }
}

}  // namespace

SentencePieceModel read_sentencepiece_model(std::string_view content, const std::string& file) {
  refuse_foreign_content(content, file);
  SentencePieceModel model;
  Message message(content, content, file);
  Field field;
  while (message.next(&field)) {
    if (field.number == 1) {
      if (model.pieces.size() == kMaxPieces)
        message.refuse(concat("more than ", kMaxPieces, " pieces"));
      model.pieces.push_back(read_piece(message.inside(field.text)));
    } else if (field.number == 2) {
      Message trainer = message.inside(field.text);
      for (Field inner; trainer.next(&inner);) {
        if (inner.number == 3) model.model_type = static_cast<int>(inner.value & 0xFF);
        if (inner.number == 35) model.byte_fallback = inner.value != 0;
      }
    } else if (field.number == 3) {
      read_normalizer(message.inside(field.text), &model);
    } else if (field.number == 5) {
      SentencePieceModel unused;  // what happens to decoded text
      read_normalizer(message.inside(field.text), &unused);
    }
  }
  if (model.pieces.empty()) message.refuse("no piece");
  return model;
}

bool begins_as_sentencepiece_model(std::string_view content) {
  // Field 1 of the model, a length, field 1 of the piece, a length, the piece.
  if (content.size() < 6 || content[0] != 0x0A || content[2] != 0x0A) return false;
  const auto outer = static_cast<unsigned char>(content[1]);
  const auto inner = static_cast<unsigned char>(content[3]);
  return outer < 0x80 && inner > 0 && inner + 2u <= outer && content.size() > outer + 2u;
}

}  // namespace t2r::data
