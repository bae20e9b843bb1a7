#include "data/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <bit>
#include <mutex>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "data/utf8.h"

namespace t2r::data {
namespace {

constexpr int kNumFixedPieces = 3 + 1 + 256;  // control pieces, "\n", bytes

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

/// Lines of all inputs, checked before training starts.
class LineIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return position_ >= lines_.size(); }
  void Next() override { ++position_; }
  const std::string& value() const override { return lines_[position_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t position_ = 0;
};

void check_options(const SentencePieceTraining& training) {
  const auto check = [](bool holds, const auto& field, const auto& value, const auto& allowed) {
    if (!holds) throw ConfigError(concat(field, " is ", value, "; allowed: ", allowed));
  };
  check(!training.inputs.empty(), "inputs", "empty", "one or more text files");
  check(training.model_type == "unigram" || training.model_type == "bpe",
        "model_type",
        "\"" + training.model_type + "\"",
        "unigram, bpe");
  check(training.vocab_size > kNumFixedPieces,
        "vocab_size",
        training.vocab_size,
        concat("more than ", kNumFixedPieces, ", the pieces that are always there"));
  check(training.character_coverage > 0 && training.character_coverage <= 1,
        "character_coverage",
        training.character_coverage,
        "above 0, up to 1");
  check(training.threads >= 1, "threads", training.threads, "1 or more");
}

std::vector<std::string> read_lines(const std::vector<std::filesystem::path>& inputs) {
  std::vector<std::string> lines;
  for (const std::filesystem::path& input : inputs) {
    const std::string content = read_file(input);
    const size_t invalid = find_invalid_utf8(content);
    if (invalid < content.size()) {
      throw DataError(concat(input.string(),
                             ": offset ",
                             invalid,
                             " is not valid UTF-8; convert the file (iconv) or remove the line"));
    }
    std::istringstream stream(content);
    for (std::string line; std::getline(stream, line);) {
      if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(std::move(line));
    }
  }
  if (lines.empty()) {
    throw DataError(concat("no text to train a tokenizer on in ",
                           inputs.size(),
                           " file(s), first ",
                           inputs.front().string()));
  }
  return lines;
}

std::unordered_map<std::string, std::string> trainer_options(
    const SentencePieceTraining& training) {
  return {{"model_type", training.model_type},
          {"vocab_size", std::to_string(training.vocab_size)},
          {"character_coverage", concat(training.character_coverage)},
          {"num_threads", std::to_string(training.threads)},
          {"unk_id", "0"},
          {"bos_id", "1"},
          {"eos_id", "2"},
          {"pad_id", "-1"},
          {"byte_fallback", "true"},
          {"user_defined_symbols", "\n"},
          {"normalization_rule_name", "identity"},
          {"remove_extra_whitespaces", "false"},
          // Longer lines would be left out without a word; this is the highest value allowed.
          {"max_sentence_length", std::to_string(1 << 30)},
          {"minloglevel", "3"}};
}

std::string train(const SentencePieceTraining& training, const std::vector<std::string>& lines) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  // The library reserves the highest value for a random seed of its own.
  sentencepiece::SetRandomGeneratorSeed(static_cast<unsigned>(training.seed % 0xFFFFFFFFull));
  LineIterator iterator(lines);
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train(trainer_options(training), &iterator, &model);
  if (!status.ok()) {
    throw ConfigError(concat("vocab_size ",
                             training.vocab_size,
                             " with character_coverage ",
                             training.character_coverage,
                             " does not fit the ",
                             lines.size(),
                             " line(s) of text: ",
                             status.error_message(),
                             " (give more text, or change vocab_size)"));
  }
  return model;
}

}  // namespace

struct SentencePieceTokenizer::Model {
  std::filesystem::path path;
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& model)
    : model_(std::make_unique<Model>()) {
  model_->path = model;
  const std::string content = read_file(model);
  const auto status = model_->processor.LoadFromSerializedProto(content);
  if (!status.ok()) {
    throw DataError(concat(model.string(), ": not a sentencepiece model: ", status.ToString()));
  }
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  std::vector<int> ids;
  const auto status = model_->processor.Encode({text.data(), text.size()}, &ids);
  if (!status.ok()) {
    throw DataError(concat(model_->path.string(), ": cannot encode: ", status.ToString()));
  }
  return {ids.begin(), ids.end()};
}

std::string SentencePieceTokenizer::decode(const std::vector<int32_t>& ids) const {
  std::vector<int> known;
  for (const int32_t id : ids) {
    if (id < 0) throw DataError(concat("token id ", id, " is negative"));
    if (id < vocab_size()) known.push_back(id);
  }
  std::string text;
  const auto status = model_->processor.Decode(known, &text);
  if (!status.ok()) {
    throw DataError(concat(model_->path.string(), ": cannot decode: ", status.ToString()));
  }
  return text;
}

TokenPiece SentencePieceTokenizer::piece(int32_t id) const {
  if (id < 0) throw DataError(concat("token id ", id, " is negative"));
  const auto& processor = model_->processor;
  if (id >= vocab_size() || processor.IsControl(id)) return {};
  if (processor.IsUnknown(id)) {
    return {.kind = TokenPiece::Kind::kText, .text = decode({id}), .keeps_spaces = true};
  }
  const std::string& piece = processor.IdToPiece(id);
  if (processor.IsByte(id)) {
    const auto byte = static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));  // <0xE6>
    return {.kind = TokenPiece::Kind::kByte, .text = {byte}};
  }
  return {.kind = TokenPiece::Kind::kText, .text = with_spaces(piece)};
}

TextRules SentencePieceTokenizer::text_rules() const {
  const auto& processor = model_->processor;
  TextRules rules;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    if (!piece.starts_with(kSpace) || piece.size() == kSpace.size() ||
        piece.find(kSpace, 1) < piece.size())
      continue;
    if (decode({id}).starts_with(' ')) break;
    rules.strips_first_space = true;
    const int space = processor.PieceToId(kSpace);
    rules.strips_leading_spaces =
        !processor.IsUnknown(space) && !decode({space, id}).starts_with(' ');
    break;
  }
  return rules;
}

int64_t SentencePieceTokenizer::vocab_size() const {
  return model_->processor.GetPieceSize();
}

std::optional<int32_t> SentencePieceTokenizer::end_of_document() const {
  const int id = model_->processor.eos_id();
  return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
}

std::string SentencePieceTokenizer::hash() const {
  const auto& processor = model_->processor;
  Hasher hasher;
  hasher.update(concat("sentencepiece, form 1, ", vocab_size(), " pieces\n"));
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
  return hasher.hex();
}

std::vector<std::filesystem::path> SentencePieceTokenizer::files() const {
  return {model_->path};
}

void train_sentencepiece(const SentencePieceTraining& training) {
  check_options(training);
  const std::string model = train(training, read_lines(training.inputs));
  write_file_durably(training.output_model, model);
}

}  // namespace t2r::data
