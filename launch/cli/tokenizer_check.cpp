#include "launch/cli/tokenizer_check.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/folder_manifest.h"
#include "base/log.h"
#include "base/text.h"
#include "launch/model_files.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

/// What a model folder says of its tokenizer.
struct KnownTokenizers {
  std::vector<std::string> hashes;  // of every form that could be read
  std::string reason;               // why one could not
};

KnownTokenizers known_tokenizers(const fs::path& folder) {
  KnownTokenizers known;
  const auto add = [&](const fs::path& path) {
    try {
      const std::string hash = data::open_tokenizer(path)->hash();
      if (std::find(known.hashes.begin(), known.hashes.end(), hash) == known.hashes.end())
        known.hashes.push_back(hash);
    } catch (const Error& error) {
      known.reason = error.what();
    }
  };
  if (has_tokenizer(folder)) add(folder);
  for (const fs::path& file : data::sentencepiece_files(folder)) add(file);
  if (!known.hashes.empty() || !known.reason.empty()) return known;
  const std::optional<FolderManifest> manifest = find_folder_manifest(folder);
  if (!manifest.has_value()) return known;
  const auto options = manifest->fields.find("options");  // of the run that wrote the checkpoint
  if (options == manifest->fields.end() || !options->is_object()) return known;
  const auto hash = options->find("tokenizer");
  if (hash != options->end() && hash->is_string()) known.hashes.push_back(hash->get<std::string>());
  return known;
}

}  // namespace

void check_tokenizer(const data::Tokenizer& tokenizer,
                     const std::string& path,
                     const data::Corpus& corpus) {
  if (tokenizer.hash() == corpus.tokenizer_hash()) return;
  throw ConfigError(concat("the shards were made with another tokenizer (",
                           corpus.tokenizer_hash(),
                           ") than ",
                           path,
                           " (",
                           tokenizer.hash(),
                           "); run `t2r prepare lm` with this one"));
}

void check_model_tokenizer(const fs::path& model_folder,
                           const std::string& hash,
                           const std::string& whose) {
  if (!fs::is_directory(model_folder)) return;  // what that is, loading it says
  const KnownTokenizers known = known_tokenizers(model_folder);
  if (std::find(known.hashes.begin(), known.hashes.end(), hash) != known.hashes.end()) return;
  if (!known.reason.empty()) {
    log::warning(concat("cannot tell whether the tokenizer is the model's: ", known.reason));
    return;
  }
  if (known.hashes.empty()) return;
  throw ConfigError(concat(whose,
                           " another tokenizer (",
                           hash,
                           ") than the model's in ",
                           model_folder.string(),
                           " (",
                           known.hashes.front(),
                           "): they do not belong together"));
}

BeginOfText begin_of_text(std::optional<bool> choice,
                          const data::Tokenizer& tokenizer,
                          std::optional<int64_t> models_begin) {
  if (choice == false) return {};
  const std::optional<int64_t> its_own = tokenizer.begin_of_text();
  const std::optional<int64_t> any = its_own.has_value() ? its_own : models_begin;
  if (choice != true) return {its_own, any};
  if (!any.has_value()) {
    throw ConfigError(
        not_allowed("begin-of-text",
                    "true",
                    "auto, false; neither the tokenizer's configuration nor a model to continue "
                    "with (bos_token_id) names such a token",
                    "here"));
  }
  return {any, any};
}

}  // namespace t2r::launch
