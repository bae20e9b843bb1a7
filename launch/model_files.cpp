#include "launch/model_files.h"

#include <algorithm>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/tokenizers/tokenizer.h"
#include "model/files/generation_defaults.h"

namespace t2r::launch {

namespace fs = std::filesystem;

namespace {

/// What a tokenizer is read from; sentencepiece models have any name.
constexpr const char* kVocabularies[] = {
    "tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"};
constexpr const char* kBesideVocabulary[] = {
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"};

std::vector<fs::path> vocabularies(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const char* name : kVocabularies)
    if (fs::exists(folder / name)) files.push_back(folder / name);
  for (const fs::path& model : data::sentencepiece_files(folder)) files.push_back(model);
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

bool has_tokenizer(const fs::path& folder) {
  return !vocabularies(folder).empty();
}

std::vector<fs::path> tokenizer_companions(const fs::path& folder) {
  std::vector<fs::path> files = vocabularies(folder);
  for (const char* name : kBesideVocabulary)
    if (fs::exists(folder / name)) files.push_back(folder / name);
  return files;
}

std::vector<fs::path> generation_companions(const fs::path& folder) {
  const fs::path file = folder / model::kGenerationConfigFile;
  return fs::exists(file) ? std::vector<fs::path>{file} : std::vector<fs::path>{};
}

std::vector<fs::path> companion_files(const fs::path& folder) {
  std::vector<fs::path> files = tokenizer_companions(folder);
  for (fs::path& file : generation_companions(folder)) files.push_back(std::move(file));
  return files;
}

std::vector<CompanionFile> read_companions(const std::vector<fs::path>& files) {
  std::vector<CompanionFile> read;
  for (const fs::path& file : files) read.push_back({file.filename().string(), read_file(file)});
  return read;
}

void make_folder(const fs::path& output, const std::function<void(const fs::path&)>& fill) {
  if (fs::exists(output))
    throw ConfigError(concat(output.string(), " exists already; choose another --output"));
  const fs::path temporary = temporary_sibling(output);
  std::error_code error;
  fs::create_directories(temporary, error);
  if (error) throw WriteError(concat(output.string(), ": cannot create: ", error.message()));
  try {
    fill(temporary);
    sync_path(temporary);
    rename_durably(temporary, output);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace t2r::launch
