#include "model/files/model_folder.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/quoted_name.h"
#include "model/files/safetensors_index.h"

namespace t2r::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kAdapterConfig = "adapter_config.json";
constexpr const char* kMergeFirst =
    "a LoRA adapter: changes to another model, which is not part of it; merge it first "
    "(PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER))";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// Names in `folder` that end so, sorted.
std::vector<std::string> names_ending(const fs::path& folder,
                                      std::initializer_list<const char*> extensions) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (std::ranges::any_of(extensions, [&](const char* end) { return name.ends_with(end); }))
      names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

/// A folder of folders step-N, as a run has.
bool holds_checkpoints(const fs::path& folder) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().filename().string().starts_with("step-") && is_there(entry.path() / kConfig))
      return true;
  return false;
}

std::string best_of(const fs::path& checkpoints) {
  return (checkpoints / (is_there(checkpoints / "best") ? "best" : "latest")).string();
}

/// What a folder without config.json is; empty if that cannot be told.
std::optional<std::string> kind_of(const fs::path& folder) {
  if (is_there(folder / kAdapterConfig) || is_there(folder / "adapter_model.safetensors"))
    return concat("is ", kMergeFirst);
  if (holds_checkpoints(folder / "checkpoints"))
    return concat("is a run's folder, not a model; give one of its checkpoints: ",
                  best_of(folder / "checkpoints"));
  if (holds_checkpoints(folder))
    return concat("holds a run's checkpoints; give one of them: ", best_of(folder));
  if (is_there(folder / "metrics.jsonl"))
    return "is a run's folder without a checkpoint, not a model; a run saves with "
           "--checkpoint-every and at its end";
  if (!names_ending(folder, {".h5"}).empty())
    return "holds shards of text (*.h5), not a model; shards go to --data, --train-data or "
           "--valid-data";
  if (!names_ending(folder, {".gguf"}).empty())
    return "holds a GGUF file, as llama.cpp has it; take the model's Hugging Face folder";
  if (is_there(folder / "params.json") && !names_ending(folder, {".pth"}).empty())
    return "holds a Llama in its first form (params.json, *.pth); convert it with transformers' "
           "convert_llama_weights_to_hf.py";
  return std::nullopt;
}

}  // namespace

void check_model_folder(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    const bool is_weights = is_there(folder) && folder.extension() == ".safetensors";
    throw ConfigError(
        concat(folder.string(),
               is_there(folder) ? " is a file and" : "",
               " is not a folder; a model is a Hugging Face folder with config.json and "
               "model.safetensors",
               is_weights ? ": give the folder that this file lies in" : ""));
  }
  // transformers would take the adapter with the model beside it, without a word.
  if (is_there(folder / kAdapterConfig))
    throw ConfigError(
        concat(folder.string(), ": ", kAdapterConfig, " says that this is ", kMergeFirst));
  if (is_there(folder / kConfig)) return;
  if (const auto kind = kind_of(folder)) throw ConfigError(concat(folder.string(), " ", *kind));
  throw DataError(concat((folder / kConfig).string(),
                         " is missing; a model is a Hugging Face folder with config.json and "
                         "model.safetensors, as save_pretrained writes it"));
}

void refuse_folder_without_weights(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    throw DataError(folder.string() + ": a model must be a folder; there is none of this name");
  std::string message =
      concat(folder.string(), ": neither ", kWeightsFile, " nor ", kWeightsIndexFile, " is there");
  const std::vector<std::string> pickles = names_ending(folder, {".bin", ".pt", ".pth", ".ckpt"});
  const std::vector<std::string> others =
      names_ending(folder, {".safetensors", ".gguf", ".h5", ".msgpack"});
  if (!pickles.empty()) {
    message += concat("; ",
                      quoted_name(pickles.front()),
                      " is, but only safetensors are read: a pickle file can run any code when it "
                      "is loaded. Save the model with save_pretrained(..., "
                      "safe_serialization=True) first");
  } else if (!others.empty()) {
    message += concat("; ", quoted_name(others.front()), " is, which is not looked for");
  }
  throw DataError(message);
}

}  // namespace t2r::model
