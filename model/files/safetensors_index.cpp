#include "model/files/safetensors_index.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/foreign_file.h"
#include "base/quoted_name.h"
#include "base/strict_json.h"
#include "model/files/model_folder.h"

namespace t2r::model {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxIndexDepth = 8;
constexpr size_t kMaxIndexKeys = 1 << 20;
constexpr size_t kMaxShards = 1 << 12;

/// Why `file` may not be named by an index; empty if it may.
std::optional<std::string> refusal_of_shard_name(std::string_view file) {
  if (file.find_first_of("/\\") != std::string_view::npos || file.find("..") != std::string::npos)
    return "a shard must lie in the index's own folder: no '/', '\\' or '..'";
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(file.begin(), file.end(), is_control))
    return "a shard's name must hold no control characters";
  constexpr std::string_view kExtension = ".safetensors";
  if (!file.ends_with(kExtension) || file.starts_with('.'))
    return "a shard must be named *.safetensors";
  return std::nullopt;
}

/// Collects "weight_map"; whatever stands beside it is passed over.
class IndexReader final : public StrictJsonReader {
 public:
  explicit IndexReader(std::string file)
      : StrictJsonReader(std::move(file), 0, {kMaxIndexDepth, kMaxIndexKeys}) {}

  WeightMap take() {
    if (!seen_) refuse("an index must have a \"weight_map\"");
    return std::move(weight_map_);
  }

 private:
  bool at_weight_map() const { return top_key_is_weight_map_ && depth() >= 1; }

  void enter_object() override {
    if (depth() == 2 && at_weight_map()) seen_ = true;
    if (depth() > 2 && at_weight_map()) refuse_value("an object");
  }
  void leave_object() override {}
  void enter_array() override {
    if (depth() == 1) refuse("an index must be a JSON object, not an array");
    if (at_weight_map()) refuse_value("an array");
  }
  void leave_array() override {}

  void on_key() override {
    if (depth() == 1) top_key_is_weight_map_ = last_key() == "weight_map";
  }

  void on_string(std::string& value) override {
    if (depth() == 0) refuse("an index must be a JSON object, not a string");
    if (!at_weight_map()) return;
    if (depth() == 1) refuse_value("a string");
    if (const auto refusal = refusal_of_shard_name(value))
      refuse(concat(
          "file ", quoted_name(value), " of tensor ", quoted_name(last_key()), ": ", *refusal));
    weight_map_.emplace(last_key(), std::move(value));
  }

  void on_unsigned(uint64_t value) override { on_other(std::to_string(value)); }

  void on_other(const std::string& value) override {
    if (depth() == 0) refuse("an index must be a JSON object, not " + value);
    if (at_weight_map()) refuse_value(value);
  }

  [[noreturn]] void refuse_value(const std::string& found) const {
    const bool is_map = !seen_;
    refuse(
        is_map
            ? "weight_map must be an object, not " + found
            : concat("weight_map must name a file for ", quoted_name(last_key()), ", not ", found));
  }

  WeightMap weight_map_;
  bool top_key_is_weight_map_ = false;
  bool seen_ = false;
};

WeightMap read_weight_map(const fs::path& index) {
  const uint64_t num_bytes = regular_file_size(index);
  if (num_bytes > kMaxIndexBytes)
    throw DataError(
        concat(index.string(), ": ", num_bytes, " bytes; an index may have ", kMaxIndexBytes));
  return parse_weight_map(read_file(index), index.string());
}

/// Refuses a shard unless it holds exactly `expected`, the tensors that the index places in it.
void check_shard(const SafetensorsFile& shard,
                 const std::string& shard_name,
                 const std::set<std::string_view>& expected,
                 const fs::path& index) {
  for (const TensorView& tensor : shard.tensors())
    if (!expected.contains(tensor.name))
      throw DataError(concat(index.string(),
                             ": weight_map must place tensor ",
                             quoted_name(tensor.name),
                             " in ",
                             quoted_name(shard_name),
                             ", where it is"));
  for (const std::string_view tensor : expected)
    if (shard.find(tensor) == nullptr)
      throw DataError(concat(index.string(),
                             ": weight_map places tensor ",
                             quoted_name(tensor),
                             " in ",
                             quoted_name(shard_name),
                             ", where it is not"));
}

ModelWeights open_sharded(const fs::path& folder, const fs::path& index) {
  const WeightMap weight_map = read_weight_map(index);
  std::map<std::string, std::set<std::string_view>> tensors_of_shard;
  for (const auto& [tensor, file] : weight_map) tensors_of_shard[file].insert(tensor);
  const size_t num_shards = tensors_of_shard.size();
  if (num_shards == 0 || num_shards > kMaxShards)
    throw DataError(concat(
        index.string(), ": weight_map must name 1 to ", kMaxShards, " files, not ", num_shards));
  std::vector<SafetensorsFile> shards;
  for (const auto& [name, tensors] : tensors_of_shard) {
    std::error_code ignored;
    if (!fs::exists(folder / name, ignored))
      throw DataError(concat(index.string(),
                             ": weight_map names ",
                             quoted_name(name),
                             ", which is missing in the folder"));
    shards.emplace_back(folder / name);
    check_shard(shards.back(), name, tensors, index);
  }
  return ModelWeights(index, std::move(shards));
}

std::string shard_name(size_t number, size_t num_shards) {
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", number, num_shards);
  return name;
}

/// Tensors in order, a new shard whenever the next tensor would not fit in the last.
std::vector<std::vector<TensorView>> split_into_shards(const std::vector<TensorView>& tensors,
                                                       uint64_t max_shard_bytes) {
  std::vector<std::vector<TensorView>> shards(1);
  uint64_t shard_bytes = 0;
  for (const TensorView& tensor : tensors) {
    if (!shards.back().empty() && tensor.num_bytes > max_shard_bytes - shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(tensor);
    shard_bytes = std::min(max_shard_bytes, shard_bytes + tensor.num_bytes);
  }
  return shards;
}

std::string index_text(const std::vector<std::vector<TensorView>>& shards) {
  uint64_t total_bytes = 0;
  nlohmann::json weight_map = nlohmann::json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const TensorView& tensor : shards[i]) {
      require(weight_map.emplace(tensor.name, shard_name(i + 1, shards.size())).second,
              "write_model_weights: a tensor's name is there twice");
      total_bytes += tensor.num_bytes;
    }
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}},
                                {"weight_map", std::move(weight_map)}};
  return index.dump(2, ' ', true) + "\n";
}

}  // namespace

WeightMap parse_weight_map(std::string_view text, const std::string& file) {
  refuse_foreign_content(text, file);
  IndexReader reader(file);
  reader.read(text);
  return reader.take();
}

ModelWeights::ModelWeights(fs::path source, std::vector<SafetensorsFile> files)
    : source_(std::move(source)), files_(std::move(files)) {
  require(!files_.empty(), "ModelWeights needs a file");
  for (const SafetensorsFile& file : files_) {
    for (const TensorView& tensor : file.tensors()) {
      tensors_.push_back(&tensor);
      if (!by_name_.emplace(tensor.name, &tensor).second)
        throw DataError(
            concat(source_.string(), ": tensor ", quoted_name(tensor.name), " is in two files"));
    }
  }
}

const TensorView* ModelWeights::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorView& ModelWeights::at(std::string_view name) const {
  const TensorView* tensor = find(name);
  if (tensor == nullptr)
    throw DataError(concat(source_.string(), ": tensor ", quoted_name(name), " is missing"));
  return *tensor;
}

ModelWeights open_model_weights(const fs::path& folder) {
  std::error_code ignored;
  const fs::path single = folder / kWeightsFile;
  const fs::path index = folder / kWeightsIndexFile;
  const bool has_single = fs::exists(single, ignored);
  const bool has_index = fs::exists(index, ignored);
  if (has_single && has_index)
    throw DataError(concat(folder.string(),
                           ": both ",
                           kWeightsFile,
                           " and ",
                           kWeightsIndexFile,
                           " are there; remove the one that is not meant"));
  if (has_index) return open_sharded(folder, index);
  if (!has_single) refuse_folder_without_weights(folder);
  std::vector<SafetensorsFile> files;
  files.emplace_back(single);
  return ModelWeights(single, std::move(files));
}

void write_model_weights(const fs::path& folder,
                         const std::vector<TensorView>& tensors,
                         const Metadata& metadata,
                         uint64_t max_shard_bytes) {
  require(max_shard_bytes > 0, "write_model_weights: max_shard_bytes must be > 0");
  for (const char* name : {kWeightsFile, kWeightsIndexFile}) {
    std::error_code ignored;
    // Replacing shards one by one would leave a mixture of two models after a crash.
    if (fs::exists(folder / name, ignored))
      throw WriteError(concat((folder / name).string(),
                              ": is there already; weights must go to a folder without any"));
  }
  const std::vector<std::vector<TensorView>> shards = split_into_shards(tensors, max_shard_bytes);
  if (shards.size() == 1) {
    write_safetensors(folder / kWeightsFile, tensors, metadata);
    return;
  }
  const std::string index = index_text(shards);
  const auto shard_path = [&](size_t i) { return folder / shard_name(i + 1, shards.size()); };
  size_t num_written = 0;
  try {
    for (; num_written < shards.size(); ++num_written)
      write_safetensors(shard_path(num_written), shards[num_written], metadata);
    write_file_durably(folder / kWeightsIndexFile, index);
  } catch (...) {
    // A full disk is not relieved by shards that no index names.
    std::error_code ignored;
    for (size_t i = 0; i < num_written; ++i) fs::remove(shard_path(i), ignored);
    throw;
  }
}

}  // namespace t2r::model
