#include "data/tokenizers/tokenizer.h"

#include <algorithm>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/folder_manifest.h"
#include "base/foreign_file.h"
#include "base/log.h"
#include "data/tokenizers/bpe.h"
#include "data/tokenizers/bpe_files.h"
#include "data/tokenizers/llama_tokenizer.h"
#include "data/tokenizers/sentencepiece_model.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/tokenizers/tokenizer_config.h"
#include "data/tokenizers/tokenizer_json.h"

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
    "(tokenizer.model, spiece.model, any name)";

bool is_sentencepiece_name(const fs::path& file) {
  return file.extension() == ".model" || file.extension() == ".spm";
}

bool is_sentencepiece(const fs::path& file) {
  return is_sentencepiece_name(file) || begins_as_sentencepiece_model(read_beginning(file, 512));
}

/// The folder's sentencepiece model; empty if it has none.
fs::path find_sentencepiece(const fs::path& folder) {
  for (const char* name : {"tokenizer.model", "spiece.model"}) {
    if (fs::exists(folder / name)) return folder / name;
  }
  const std::vector<fs::path> models = sentencepiece_files(folder);
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

std::unique_ptr<Tokenizer> open_sentencepiece(const fs::path& file, const TokenizerConfig& config) {
  refuse_foreign_file(file);
  if (config.tokenizer_class == "LlamaTokenizer") {
    return std::make_unique<Bpe>(read_llama_model(file, config));
  }
  return std::make_unique<SentencePieceTokenizer>(file, config);
}

std::unique_ptr<Tokenizer> open_tokenizer_json(const fs::path& file) {
  refuse_foreign_file(file);
  try {
    return std::make_unique<Bpe>(read_tokenizer_json(file));
  } catch (const UnsupportedTokenizer& refusal) {
    const fs::path model =
        find_sentencepiece(file.parent_path().empty() ? "." : file.parent_path());
    if (model.empty()) throw;
    log::info(concat(refusal.what(), "; taking ", model.filename().string(), " beside it"));
    TokenizerConfig config = read_tokenizer_config(file.parent_path());
    if (config.added_tokens.empty()) config.added_tokens = read_added_tokens_of(file);
    if (config.files.empty()) config.files = {file};
    return open_sentencepiece(model, config);
  }
}

std::unique_ptr<Tokenizer> open_pair(const fs::path& folder, const BpePair& pair) {
  refuse_foreign_file(folder / pair.vocabulary);
  refuse_foreign_file(folder / pair.merges);
  return std::make_unique<Bpe>(
      read_vocabulary_and_merges(folder / pair.vocabulary, folder / pair.merges));
}

bool has_pair(const fs::path& folder, const BpePair& pair) {
  return fs::exists(folder / pair.vocabulary) && fs::exists(folder / pair.merges);
}

std::unique_ptr<Tokenizer> open_folder(const fs::path& folder) {
  if (fs::exists(folder / "tokenizer.json")) return open_tokenizer_json(folder / "tokenizer.json");
  for (const BpePair& pair : kBpePairs) {
    if (has_pair(folder, pair)) return open_pair(folder, pair);
  }
  const fs::path model = find_sentencepiece(folder);
  if (model.empty()) {
    throw ConfigError(
        concat(folder.string(), ": no tokenizer in this folder; looked for ", kKnown));
  }
  return open_sentencepiece(model, read_tokenizer_config(folder));
}

/// What changes the tokens of the vocabulary that it lies beside.
bool is_beside_vocabulary(const std::string& name) {
  return name == "tokenizer_config.json" || name == "special_tokens_map.json" ||
         name == "added_tokens.json";
}

bool is_of_tokenizer(const std::string& name) {
  const auto is_part = [&](const BpePair& pair) {
    return name == pair.vocabulary || name == pair.merges;
  };
  return is_beside_vocabulary(name) || name == "tokenizer.json" || name.ends_with(".model") ||
         std::ranges::any_of(kBpePairs, is_part);
}

}  // namespace

std::vector<fs::path> sentencepiece_files(const fs::path& folder) {
  std::vector<fs::path> models;
  if (!fs::is_directory(folder)) return models;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && is_sentencepiece(entry.path())) models.push_back(entry.path());
  }
  std::ranges::sort(models);
  return models;
}

void verify_tokenizer_files(const fs::path& path) {
  const auto is_no_weights = [](const std::string& name) {
    return !name.ends_with(".safetensors");
  };
  if (fs::is_directory(path)) {
    verify_listed_files(path, is_no_weights, is_of_tokenizer);
  } else {  // a vocabulary that is chosen by its own name needs no other
    verify_listed_files(
        path.has_parent_path() ? path.parent_path() : ".", is_no_weights, is_beside_vocabulary);
  }
}

std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& path) {
  if (!fs::exists(path)) throw ConfigError(concat(path.string(), ": no such file or folder"));
  verify_tokenizer_files(path);
  if (fs::is_directory(path)) return open_folder(path);
  refuse_foreign_file(path);
  for (const BpePair& pair : kBpePairs) {
    if (path.filename() == pair.vocabulary || path.filename() == pair.merges) {
      return open_pair(path.parent_path(), pair);
    }
  }
  if (path.extension() == ".json") return open_tokenizer_json(path);
  if (is_sentencepiece(path))
    return open_sentencepiece(path, read_tokenizer_config(path.parent_path()));
  throw ConfigError(concat(path.string(), ": not a known tokenizer file; allowed: ", kKnown));
}

}  // namespace t2r::data
