#include <sentencepiece_trainer.h>

#include <mutex>
#include <sstream>
#include <unordered_map>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/text.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/unicode/utf8.h"

namespace t2r::data {
namespace {

constexpr int kNumFixedPieces = 3 + 1 + 256;  // control pieces, "\n", bytes

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
  check(training.vocab_size > kNumFixedPieces,
        "vocab_size",
        training.vocab_size,
        concat("more than ", kNumFixedPieces, ", the pieces that are always there"));
  check(training.character_coverage > 0 && training.character_coverage <= 1,
        "character_coverage",
        number_text(training.character_coverage),
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
  return {{"model_type", training.type == SentencePieceType::kBpe ? "bpe" : "unigram"},
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

void train_sentencepiece(const SentencePieceTraining& training) {
  check_options(training);
  const std::string model = train(training, read_lines(training.inputs));
  write_file_durably(training.output_model, model);
}

}  // namespace t2r::data
