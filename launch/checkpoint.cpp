#include "launch/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "launch/agreement.h"
#include "model/safetensors.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using model::DType;
using model::TensorView;
using torch::Tensor;

constexpr int kManifestVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kPrefix = "step-";
constexpr const char* kLatest = "latest";
constexpr const char* kBest = "best";

std::string folder_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "%s%08lld", kPrefix, static_cast<long long>(step));
  return name;
}

std::string part_name(int rank, int world) {
  char name[64];
  std::snprintf(name, sizeof(name), "optimizer-%05d-of-%05d.safetensors", rank, world);
  return name;
}

// Elements of the arena that rank `rank` writes.
std::pair<int64_t, int64_t> share(int64_t size, int rank, int world) {
  return {size * rank / world, size * (rank + 1) / world};
}

TensorView view_of(const std::string& name, const Tensor& tensor) {
  return {name,
          DType::f32,
          tensor.sizes().vec(),
          static_cast<const std::byte*>(tensor.data_ptr()),
          tensor.nbytes()};
}

void write_part(const fs::path& file, const model::AdamW& optimizer, int rank, int world) {
  const auto [begin, end] = share(optimizer.first_moment().numel(), rank, world);
  const Tensor first = optimizer.first_moment().narrow(0, begin, end - begin).cpu(),
               second = optimizer.second_moment().narrow(0, begin, end - begin).cpu();
  model::write_safetensors(file,
                           {view_of("first_moment", first), view_of("second_moment", second)},
                           {{"begin", std::to_string(begin)}, {"end", std::to_string(end)}});
}

void read_part(const fs::path& file, model::AdamW& optimizer, int rank, int world) {
  const model::SafetensorsFile part(file);
  const auto [begin, end] = share(optimizer.first_moment().numel(), rank, world);
  for (const auto& [name, moment] : {std::pair{"first_moment", optimizer.first_moment()},
                                     std::pair{"second_moment", optimizer.second_moment()}}) {
    const TensorView& view = part.at(name);
    if (view.dtype != DType::f32 || view.shape != std::vector<int64_t>{end - begin}) {
      throw DataError(concat(file.string(),
                             ": ",
                             name,
                             " does not fit this model: ",
                             model::shape_text(view.shape),
                             " elements, wanted ",
                             end - begin));
    }
    Tensor host = torch::empty({end - begin}, torch::kFloat32);
    std::memcpy(host.data_ptr<float>(), view.data, view.num_bytes);
    moment.narrow(0, begin, end - begin).copy_(host);
  }
}

void write_manifest(const fs::path& folder,
                    const TrainingPosition& position,
                    const std::string& identity,
                    int world) {
  Json files = Json::object();
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = {{"bytes", fs::file_size(entry.path())},
                                               {"xxh3_128", hash_file(entry.path())}};
  }
  const Json manifest = {{"version", kManifestVersion},
                         {"step", position.step},
                         {"num_updates", position.num_updates},
                         {"sample_cursor", position.sample_cursor},
                         {"num_tokens", position.num_tokens},
                         {"has_best", position.has_best},
                         {"best_loss", position.best_loss},
                         {"best_step", position.best_step},
                         {"world_size", world},
                         {"identity", identity},
                         {"files", files}};
  write_file_durably(folder / kManifest, manifest.dump(2) + "\n");
}

struct Verified {
  TrainingPosition position;
  std::string identity;
  int world = 0;
};

void check_file(const fs::path& path, const Json& entry) {
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  if (error) throw DataError(concat(path.string(), ": ", error.message()));
  if (size != entry.at("bytes").get<uint64_t>()) {
    throw DataError(
        concat(path.string(), ": ", size, " bytes, the manifest says ", entry.at("bytes").dump()));
  }
  if (hash_file(path) != entry.at("xxh3_128").get<std::string>()) {
    throw DataError(concat(path.string(), ": content does not match the manifest's hash"));
  }
}

// Reads a manifest; with `checks_files`, checks every file against it.
Verified read_manifest(const fs::path& folder, bool checks_files) {
  const fs::path file = folder / kManifest;
  const Json manifest = Json::parse(read_file(file), nullptr, false);
  try {
    if (manifest.at("version").get<int>() != kManifestVersion) {
      throw DataError(concat(file.string(),
                             ": version ",
                             manifest.at("version").dump(),
                             ", wanted ",
                             kManifestVersion));
    }
    if (checks_files) {
      for (const auto& [name, entry] : manifest.at("files").items())
        check_file(folder / name, entry);
    }
    Verified result;
    result.position = {.step = manifest.at("step").get<int64_t>(),
                       .num_updates = manifest.at("num_updates").get<int64_t>(),
                       .sample_cursor = manifest.at("sample_cursor").get<int64_t>(),
                       .num_tokens = manifest.at("num_tokens").get<int64_t>(),
                       .best_loss = manifest.at("best_loss").get<double>(),
                       .has_best = manifest.at("has_best").get<bool>(),
                       .best_step = manifest.value("best_step", int64_t{0})};
    result.identity = manifest.at("identity").get<std::string>();
    result.world = manifest.at("world_size").get<int>();
    return result;
  } catch (const Json::exception& error) {
    throw DataError(concat(file.string(), ": not a manifest: ", error.what()));
  }
}

// Points `link` at a sibling folder, atomically.
void move_link(const fs::path& link, const std::string& target) {
  const fs::path temporary = temporary_sibling(link);
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_directory_symlink(target, temporary, error);
  if (error) throw WriteError(concat(link.string(), ": cannot create link: ", error.message()));
  rename_durably(temporary, link);
}

bool is_temporary(const std::string& name) {
  return name.find(".tmp.") != std::string::npos;
}

void copy_beside(const std::vector<fs::path>& files, const fs::path& folder) {
  for (const fs::path& file : files) write_file_durably(folder / file.filename(), read_file(file));
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path folder,
                                 int64_t num_kept,
                                 dist::Communicator& communicator)
    : folder_(std::move(folder)), num_kept_(num_kept), communicator_(communicator) {}

std::vector<std::string> CheckpointStore::names_newest_first() const {
  std::vector<std::string> names;
  if (!fs::is_directory(folder_)) return names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && !is_temporary(name) && !entry.is_symlink())
      names.push_back(name);
  }
  std::sort(names.rbegin(), names.rend());
  return names;
}

bool CheckpointStore::empty() const {
  return names_newest_first().empty();
}

bool CheckpointStore::has_best() const {
  return fs::exists(folder_ / kBest);
}

void CheckpointStore::save(const CheckpointContent& content,
                           const TrainingPosition& position,
                           bool is_best) {
  const int rank = communicator_.rank(), world = communicator_.size();
  const std::string name = folder_name(position.step);
  // Rank 0's process names the folder, for all.
  const std::string temporary_name =
      communicator_.all_gather(temporary_sibling(name).string()).front();
  const fs::path temporary = folder_ / temporary_name;
  LocalOutcome outcome = agree(communicator_, attempt([&] {
                                 if (rank == 0) fs::create_directories(temporary);
                               }));
  if (outcome.exit_code == 0) {
    outcome =
        agree(communicator_, attempt([&] {
                write_part(temporary / part_name(rank, world), content.optimizer, rank, world);
                if (rank == 0) {
                  model::save_model(content.model, content.format, temporary);
                  copy_beside(content.copies, temporary);
                }
              }));
  }
  if (outcome.exit_code == 0) {
    outcome = agree(communicator_, attempt([&] {
                      if (rank != 0) return;
                      write_manifest(temporary, position, content.identity, world);
                      publish(temporary, name, is_best);
                    }));
  }
  if (outcome.exit_code != 0) {
    std::error_code ignored;
    if (rank == 0) fs::remove_all(temporary, ignored);
    throw WriteError("checkpoint not saved: " + outcome.message);
  }
}

void CheckpointStore::mark_best(const TrainingPosition& position, bool is_best) {
  on_first_rank(communicator_, [&] {
    const std::string name = folder_name(position.step);
    const fs::path file = folder_ / name / kManifest;
    Json manifest = Json::parse(read_file(file));
    manifest["has_best"] = position.has_best;
    manifest["best_loss"] = position.best_loss;
    manifest["best_step"] = position.best_step;
    write_file_durably(file, manifest.dump(2) + "\n");
    if (!is_best && has_best()) return;
    move_link(folder_ / kBest, name);
    remove_old();
  });
}

void CheckpointStore::publish(const fs::path& temporary, const std::string& name, bool is_best) {
  sync_path(temporary);
  std::error_code ignored;
  fs::remove_all(
      folder_ / name,
      ignored);  // only a damaged one can have this name: the run has just come to this step
  rename_durably(temporary, folder_ / name);
  move_link(folder_ / kLatest, name);
  if (is_best) move_link(folder_ / kBest, name);
  remove_old();
}

void CheckpointStore::remove_old() const {
  std::error_code error;
  const std::string best = fs::read_symlink(folder_ / kBest, error).string();
  const std::vector<std::string> names = names_newest_first();
  for (size_t i = static_cast<size_t>(num_kept_); i < names.size(); ++i) {
    if (names[i] != best) fs::remove_all(folder_ / names[i], error);
  }
}

std::optional<TrainingPosition> CheckpointStore::load(const CheckpointContent& content) {
  std::string choice;  // name and facts, found by rank 0 for all
  Verified found;
  on_first_rank(communicator_, [&] {
    std::error_code ignored;
    if (fs::is_directory(folder_)) {
      for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
        if (is_temporary(entry.path().filename().string())) fs::remove_all(entry.path(), ignored);
      }
    }
    for (const std::string& name : names_newest_first()) {
      try {
        found = read_manifest(folder_ / name, /*checks_files=*/true);
        choice = name;
        return;
      } catch (const DataError& error) {
        log::warning(concat("checkpoint ", name, " is damaged and not used: ", error.what()));
      }
    }
  });
  choice = communicator_.all_gather(choice).front();
  if (choice.empty()) return std::nullopt;
  const fs::path folder = folder_ / choice;
  on_all_ranks(communicator_, [&] {
    // Rank 0 has read and checked every byte already.
    if (communicator_.rank() != 0) found = read_manifest(folder, /*checks_files=*/false);
    if (found.identity != content.identity) {
      throw ConfigError(concat(folder.string(),
                               " was made with other options and cannot be resumed; there:\n",
                               found.identity,
                               "here:\n",
                               content.identity));
    }
    model::load_weights(content.model, folder, /*may_lack_new=*/false);
    for (int part = 0; part < found.world; ++part) {
      read_part(folder / part_name(part, found.world), content.optimizer, part, found.world);
    }
  });
  log::info(concat("resumed from ", folder.string(), ", written by ", found.world, " rank(s)"));
  return found.position;
}

}  // namespace t2r::launch
