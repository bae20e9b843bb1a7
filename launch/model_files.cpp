#include "launch/model_files.h"

#include "base/durable_file.h"
#include "base/error.h"

namespace t2r::launch {

namespace fs = std::filesystem;

std::vector<fs::path> companion_files(const fs::path& folder) {
  constexpr const char* kNames[] = {"tokenizer.json",
                                    "tokenizer_config.json",
                                    "special_tokens_map.json",
                                    "added_tokens.json",
                                    "vocab.json",
                                    "merges.txt",
                                    "encoder.json",
                                    "vocab.bpe",
                                    "tokenizer.model",
                                    "spiece.model",
                                    "generation_config.json",
                                    "chat_template.jinja"};
  std::vector<fs::path> files;
  for (const char* name : kNames) {
    if (fs::is_regular_file(folder / name)) files.push_back(folder / name);
  }
  return files;
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
