#include "data/tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "data/byte_bpe.h"
#include "data/sentencepiece_tokenizer.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;

/// A vocabulary and the merges that belong to it.
struct BpePair {
  const char* vocabulary;
  const char* merges;
};

constexpr BpePair kBpePairs[] = {{"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}};
constexpr const char* kKnown =
    "tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe, or one sentencepiece model "
    "(tokenizer.model, spiece.model, *.model, *.spm)";

std::unique_ptr<Tokenizer> open_tokenizer_json(const fs::path& file) {
  return std::make_unique<ByteBpe>(read_tokenizer_json(file));
}

std::unique_ptr<Tokenizer> open_pair(const fs::path& folder, const BpePair& pair) {
  return std::make_unique<ByteBpe>(
      read_vocabulary_and_merges(folder / pair.vocabulary, folder / pair.merges));
}

bool is_sentencepiece(const fs::path& file) {
  return file.extension() == ".model" || file.extension() == ".spm";
}

/// The folder's sentencepiece model; empty if it has none.
fs::path find_sentencepiece(const fs::path& folder) {
  for (const char* name : {"tokenizer.model", "spiece.model"}) {
    if (fs::exists(folder / name)) return folder / name;
  }
  std::vector<fs::path> models;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && is_sentencepiece(entry.path())) models.push_back(entry.path());
  }
  std::ranges::sort(models);
  if (models.size() > 1) {
    throw ConfigError(concat(folder.string(),
                             ": holds ",
                             models.size(),
                             " sentencepiece models (",
                             models[0].filename().string(),
                             ", ",
                             models[1].filename().string(),
                             ", ...); name the file itself"));
  }
  return models.empty() ? fs::path() : models.front();
}

std::unique_ptr<Tokenizer> open_folder(const fs::path& folder) {
  if (fs::exists(folder / "tokenizer.json")) return open_tokenizer_json(folder / "tokenizer.json");
  for (const BpePair& pair : kBpePairs) {
    if (fs::exists(folder / pair.vocabulary) && fs::exists(folder / pair.merges)) {
      return open_pair(folder, pair);
    }
  }
  const fs::path model = find_sentencepiece(folder);
  if (model.empty()) {
    throw ConfigError(
        concat(folder.string(), ": no tokenizer in this folder; looked for ", kKnown));
  }
  return std::make_unique<SentencePieceTokenizer>(model);
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& path) {
  if (!fs::exists(path)) throw ConfigError(concat(path.string(), ": no such file or folder"));
  if (fs::is_directory(path)) return open_folder(path);
  for (const BpePair& pair : kBpePairs) {
    if (path.filename() == pair.vocabulary || path.filename() == pair.merges) {
      return open_pair(path.parent_path(), pair);
    }
  }
  if (path.extension() == ".json") return open_tokenizer_json(path);
  if (is_sentencepiece(path)) return std::make_unique<SentencePieceTokenizer>(path);
  throw ConfigError(concat(path.string(), ": not a known tokenizer file; allowed: ", kKnown));
}

}  // namespace t2r::data
