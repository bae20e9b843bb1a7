#include "data/tokenizers/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <bit>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/quoted_name.h"
#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/sentencepiece_model.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

/// Differs between identity, NFKC, NFKC with case folding, with and without white space kept.
constexpr std::string_view kNormalisationProbe =
    "  Ab\xEF\xBD\x81 \xEF\xAC\x81  e\xCC\x81\t\n \xC2\xA0X ";

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t offset = 0; offset < piece.size();) {
    const bool is_space = piece.substr(offset).starts_with(kSpace);
    text.push_back(is_space ? ' ' : piece[offset]);
    offset += is_space ? kSpace.size() : 1;
  }
  return text;
}

}  // namespace

struct SentencePieceTokenizer::Model {
  std::filesystem::path path;
  sentencepiece::SentencePieceProcessor processor;
  /// Puts no space before the text: for stretches behind the first and a first one that has a space
  /// of its own, where the configuration says so (legacy = false).
  std::optional<sentencepiece::SentencePieceProcessor> unprefixed;
  AddedTokens added{{}};
  std::unordered_map<int32_t, std::string> added_by_id;
  std::set<int32_t> special;  ///< that the configuration names
  bool removes_extra_spaces = true, adds_prefix_space = true;
  int64_t vocab_size = 0;
  std::optional<int32_t> begin_of_text, end_of_document;
  std::vector<std::filesystem::path> files;

  void load(const std::string& content, sentencepiece::SentencePieceProcessor* into) const {
    const auto status = into->LoadFromSerializedProto(content);
    if (!status.ok()) {
      throw DataError(concat(path.string(), ": not a sentencepiece model: ", status.ToString()));
    }
  }

  /// Id of a piece or an added token.
  std::optional<int32_t> find(const std::string& token) const {
    for (const auto& [id, content] : added_by_id) {
      if (content == token) return id;
    }
    const int id = processor.PieceToId(token);
    if (id < 0 || (processor.IsUnknown(id) && processor.IdToPiece(id) != token))
      return std::nullopt;
    return id;
  }

  void add_tokens(const SentencePieceModel& pieces, const TokenizerConfig& config);
};

/// Control pieces, the unknown piece, and what the configuration lists.
void SentencePieceTokenizer::Model::add_tokens(const SentencePieceModel& pieces,
                                               const TokenizerConfig& config) {
  using Type = SentencePieceModel::Type;
  std::map<std::string, AddedToken> tokens;
  for (int32_t id = 0; id < std::ssize(pieces.pieces); ++id) {
    const auto& piece = pieces.pieces[static_cast<size_t>(id)];
    const bool named = piece.text == config.unknown || piece.text == config.begin_of_text ||
                       piece.text == config.end_of_text;
    if (piece.type == Type::kControl || piece.type == Type::kUnknown || named) {
      tokens[piece.text] = {.content = piece.text, .id = id};
    }
  }
  for (AddedToken token : config.added_tokens) {
    const std::optional<int32_t> known = find(token.content);
    if (known ? *known != token.id : token.id != vocab_size) {
      throw DataError(concat(path.string(),
                             ": the configuration beside it has added token ",
                             quoted_name(token.content),
                             " with id ",
                             token.id,
                             known ? "; the model has it with id " : "; the next free id is ",
                             known ? *known : vocab_size));
    }
    if (!known) ++vocab_size;
    token.normalized = false;
    tokens[token.content] = std::move(token);
  }
  std::vector<AddedToken> all;
  for (auto& [content, token] : tokens) {
    added_by_id[token.id] = content;
    if (token.special || config.special.contains(content)) special.insert(token.id);
    all.push_back(std::move(token));
  }
  added = AddedTokens(std::move(all));
}

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& model,
                                               const TokenizerConfig& config)
    : model_(std::make_unique<Model>()) {
  model_->path = model;
  model_->files = {model};
  const std::string content = read_file(model);
  const SentencePieceModel pieces = read_sentencepiece_model(content, model.string());
  model_->load(content, &model_->processor);
  model_->vocab_size = model_->processor.GetPieceSize();
  model_->removes_extra_spaces = pieces.removes_extra_spaces;
  model_->adds_prefix_space = pieces.adds_prefix_space;
  const int end = model_->processor.eos_id();
  if (end >= 0) model_->end_of_document = end;
  if (config.files.empty()) return;
  model_->files.insert(model_->files.end(), config.files.begin(), config.files.end());
  model_->add_tokens(pieces, config);
  if (config.end_of_text) {
    if (const auto named = model_->find(*config.end_of_text)) model_->end_of_document = named;
  }
  if (config.adds_begin_of_text.value_or(false)) {
    model_->begin_of_text = model_->find(config.begin_of_text.value_or("<s>"));
  }
  if (config.legacy == false) {
    // A message behind a message is merged into it: normalizer_spec { add_dummy_prefix: false }.
    model_->load(content + std::string("\x1A\x02\x18\x00", 4), &model_->unprefixed.emplace());
  }
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  if (model_->added_by_id.empty()) {
    encode_stretch(text, true, &ids);
    return ids;
  }
  model_->added.split(
      text,
      [&](std::string_view stretch) {
        encode_stretch(stretch, stretch.data() == text.data(), &ids);
      },
      [&](int32_t id) { ids.push_back(id); });
  return ids;
}

void SentencePieceTokenizer::encode_stretch(std::string_view text,
                                            bool first,
                                            std::vector<int32_t>* ids) const {
  std::vector<int> stretch;
  const bool has_space = text.starts_with(' ') || text.starts_with(kSpace) ||
                         (model_->removes_extra_spaces && !text.empty() &&
                          is_white_space(read_utf8(text, 0).code_point));
  const bool prefixes = first && !has_space;
  const auto& processor = !prefixes && model_->unprefixed ? *model_->unprefixed : model_->processor;
  const auto status = processor.Encode({text.data(), text.size()}, &stretch);
  if (!status.ok()) {
    throw DataError(concat(model_->path.string(), ": cannot encode: ", status.ToString()));
  }
  ids->insert(ids->end(), stretch.begin(), stretch.end());
}

std::string SentencePieceTokenizer::decode(const std::vector<int32_t>& ids) const {
  if (!model_->added_by_id.empty()) {
    StreamDecoder decoder(*this);
    std::string text;
    for (const int32_t id : ids) text += decoder.add(id);
    return text + decoder.finish();
  }
  return decode_pieces(ids);
}

std::string SentencePieceTokenizer::decode_pieces(const std::vector<int32_t>& ids) const {
  std::vector<int> known;
  for (const int32_t id : ids) {
    if (id < 0) throw DataError(concat("token id ", id, " is negative"));
    if (id < model_->processor.GetPieceSize()) known.push_back(id);
  }
  std::string text;
  const auto status = model_->processor.Decode(known, &text);
  if (!status.ok()) {
    throw DataError(concat(model_->path.string(), ": cannot decode: ", status.ToString()));
  }
  return text;
}

TokenPiece SentencePieceTokenizer::piece(int32_t id) const {
  using Kind = TokenPiece::Kind;
  if (id < 0) throw DataError(concat("token id ", id, " is negative"));
  const auto added = model_->added_by_id.find(id);
  if (added != model_->added_by_id.end()) {
    return {.kind = Kind::kText, .text = added->second, .keeps_spaces = true};
  }
  const auto& processor = model_->processor;
  if (id >= processor.GetPieceSize()) return {};
  // Without text, but a run of byte pieces ends there.
  if (processor.IsControl(id)) return {.kind = Kind::kText, .text = "", .keeps_spaces = true};
  if (processor.IsUnknown(id)) {
    return {.kind = Kind::kText, .text = decode_pieces({id}), .keeps_spaces = true};
  }
  const std::string& piece = processor.IdToPiece(id);
  if (processor.IsByte(id)) {
    const auto byte = static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));  // <0xE6>
    return {.kind = Kind::kByte, .text = {byte}};
  }
  return {.kind = Kind::kText, .text = with_spaces(piece)};
}

TextRules SentencePieceTokenizer::text_rules() const {
  const auto& processor = model_->processor;
  if (!model_->added_by_id.empty()) {
    return {.strips_first_space = model_->adds_prefix_space, .judges_byte_runs_whole = true};
  }
  TextRules rules;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    if (!piece.starts_with(kSpace) || piece.size() == kSpace.size() ||
        piece.find(kSpace, 1) < piece.size())
      continue;
    if (decode_pieces({id}).starts_with(' ')) break;
    rules.strips_first_space = true;
    const int space = processor.PieceToId(kSpace);
    rules.strips_leading_spaces =
        !processor.IsUnknown(space) && !decode_pieces({space, id}).starts_with(' ');
    break;
  }
  return rules;
}

int64_t SentencePieceTokenizer::vocab_size() const {
  return model_->vocab_size;
}

std::optional<int32_t> SentencePieceTokenizer::end_of_document() const {
  return model_->end_of_document;
}

std::optional<int32_t> SentencePieceTokenizer::begin_of_text() const {
  return model_->begin_of_text;
}

bool SentencePieceTokenizer::is_special(int32_t id) const {
  if (model_->special.contains(id)) return true;
  const auto& processor = model_->processor;
  return id >= 0 && id < processor.GetPieceSize() && processor.IsControl(id);
}

std::string SentencePieceTokenizer::hash() const {
  const auto& processor = model_->processor;
  Hasher hasher;
  hasher.update(concat("sentencepiece, form 1, ", processor.GetPieceSize(), " pieces\n"));
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    const int kind = processor.IsUnknown(id)   ? 1
                     : processor.IsControl(id) ? 2
                     : processor.IsUnused(id)  ? 3
                     : processor.IsByte(id)    ? 4
                                               : 0;
    hasher.update(concat(piece.size(),
                         ":",
                         piece,
                         kind,
                         " ",
                         std::bit_cast<uint32_t>(processor.GetScore(id)),
                         "\n"));
  }
  for (const int32_t id : encode(kNormalisationProbe)) hasher.update(concat(id, " "));
  for (const AddedToken& token : model_->added.tokens()) {
    hasher.update(concat("\nadded ",
                         token.content.size(),
                         ":",
                         token.content,
                         token.id,
                         token.strips_left ? " left" : "",
                         token.strips_right ? " right" : "",
                         token.single_word ? " word" : ""));
  }
  if (model_->unprefixed) hasher.update("\nprefix of the first");
  return hasher.hex();
}

std::vector<std::filesystem::path> SentencePieceTokenizer::files() const {
  return model_->files;
}

}  // namespace t2r::data
