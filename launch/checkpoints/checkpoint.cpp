#include "launch/checkpoints/checkpoint.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/folder_manifest.h"
#include "base/log.h"
#include "dist/agreement.h"
#include "launch/checkpoints/optimizer_parts.h"
#include "model/files/config_json.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

/// What reading a checkpoint led to: the same on every rank.
struct Reading {
  enum class Verdict { kGood, kDamaged, kUnreadable };
  Verdict verdict = Verdict::kGood;
  std::string message;
};

/// None: it says nothing of the checkpoint.
std::optional<Reading::Verdict> verdict_of(const dist::LocalOutcome& outcome) {
  using Kind = dist::LocalOutcome::Kind;
  switch (outcome.kind) {
    case Kind::kGood:
      return Reading::Verdict::kGood;
    case Kind::kUnreadable:
      return Reading::Verdict::kUnreadable;
    case Kind::kData:
    case Kind::kNumeric:  // weights that are not finite: an older one's may be
      return Reading::Verdict::kDamaged;
    default:
      return std::nullopt;
  }
}

/// Runs `read` on every rank. Damage is what rank 0 calls so: it has read every byte. What another
/// rank alone cannot read is no damage. Collective: every rank, same order.
/// @throws Error  on every rank, the first that says nothing of the checkpoint
template <class Read>
Reading reading_of(dist::Communicator& communicator, const Read& read) {
  using Verdict = Reading::Verdict;
  const dist::LocalOutcome mine = dist::attempt(read);
  dist::agree(communicator, verdict_of(mine).has_value() ? dist::LocalOutcome{} : mine)
      .throw_if_failed();
  const std::vector<dist::LocalOutcome> all = dist::gather_outcomes(communicator, mine);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].is_good()) continue;
    if (rank == 0) return {*verdict_of(all[rank]), all[rank].message};
    return {Verdict::kUnreadable,
            concat("rank ",
                   rank,
                   ": ",
                   all[rank].message,
                   " (rank 0 could read it: all ranks must see the same files)")};
  }
  return {};
}

CheckpointManifest parse_manifest(const FolderManifest& manifest,
                                  const fs::path& folder,
                                  int64_t step) {
  return parse_checkpoint_manifest(manifest, step, (folder / kManifestFile).string());
}

/// Hashes what lies in a checkpoint's folder and writes its manifest; what was written is read back
/// and checked as loading does it.
void write_checkpoint_manifest(const fs::path& folder, const CheckpointManifest& manifest) {
  try {
    parse_manifest(
        write_folder_manifest(folder, manifest.to_fields()), folder, manifest.position.step);
  } catch (const DataError& error) {
    throw WriteError(error.what());
  }
}

void write_beside(const std::vector<CompanionFile>& files, const fs::path& folder) {
  for (const CompanionFile& file : files) write_file_durably(folder / file.name, file.content);
}

/// Refuses a checkpoint of another run. Manifests of version 1 do not have every fact.
void check_identity(const CheckpointManifest& found,
                    bool is_old,
                    const CheckpointContent& content,
                    const fs::path& folder) {
  RunFacts here = content.identity;
  if (is_old) {
    std::erase_if(here, [&](const auto& fact) {
      return std::none_of(found.identity.begin(), found.identity.end(), [&](const auto& other) {
        return other.first == fact.first;
      });
    });
  }
  std::vector<FactDifference> differ = differences(found.identity, here);
  const fs::path config_file = folder / model::kConfigFile;
  const model::DecoderConfig config =
      model::parse_config(read_file(config_file), config_file.string());
  for (FactDifference& difference :
       differences(model_facts(config), model_facts(content.model.config())))
    differ.push_back(std::move(difference));
  if (differ.empty()) return;
  throw ConfigError(concat(folder.string(),
                           " was made with other options, data or weights and cannot be resumed: ",
                           text_of(differ, "there"),
                           ". Give what it was made with, or another --output"));
}

constexpr const char* kNothingTouched = "; nothing was changed";

}  // namespace

struct CheckpointStore::Found {
  int64_t step = 0;
  CheckpointManifest manifest;
};

CheckpointStore::CheckpointStore(fs::path folder,
                                 int64_t num_kept,
                                 dist::Communicator& communicator)
    : folder_(std::move(folder)), num_kept_(num_kept), communicator_(communicator) {}

void CheckpointStore::save(const CheckpointContent& content, const TrainingPosition& position) {
  const int rank = communicator_.rank(), world = communicator_.size();
  const dist::ShardPlan shards(content.optimizer.first_moment().numel(), world);
  fs::path temporary;
  const auto saving = [&](const auto& action) {
    dist::LocalOutcome outcome = dist::agree(communicator_, dist::attempt(action));
    if (outcome.is_good()) return;
    std::error_code ignored;
    if (rank == 0 && !temporary.empty()) fs::remove_all(temporary, ignored);
    outcome.message = "checkpoint not saved: " + outcome.message;
    // As a full disk: what is trained is still there, and the next save may have the room.
    if (outcome.is_out_of_memory()) throw WriteError(outcome.message);
    outcome.throw_if_failed();
  };
  saving([&] {
    if (rank == 0) temporary = folder_.make_temporary(position.step);
  });
  temporary = communicator_.all_gather(temporary.string()).front();  // rank 0 names it, for all
  saving([&] {
    write_optimizer_part(temporary, content.optimizer, shards, rank);
    if (rank != 0) return;
    model::save_model(content.model, content.format, temporary);
    write_beside(content.companions, temporary);
  });
  saving([&] {
    if (rank != 0) return;
    write_checkpoint_manifest(temporary, {position, world, content.identity, content.options});
    const bool is_durable = folder_.publish(temporary, position.step);
    folder_.point_links(position);
    if (is_durable && !content.keeps_older) folder_.remove_old(position, num_kept_);
  });
}

void CheckpointStore::update(const CheckpointContent& content, const TrainingPosition& position) {
  dist::on_first_rank(communicator_, [&] {
    const fs::path folder = folder_.checkpoint(position.step);
    FolderManifest manifest = read_folder_manifest(folder);
    CheckpointManifest checkpoint = parse_manifest(manifest, folder, position.step);
    checkpoint.position = position;
    if (!manifest.has_own_hash) {  // version 1, which lacks some of both
      checkpoint.identity = content.identity;
      checkpoint.options = content.options;
    }
    manifest.fields = checkpoint.to_fields();
    replace_folder_manifest(folder, manifest);
    folder_.point_links(position);
    // The best until now may have stayed as that alone.
    if (!content.keeps_older) folder_.remove_old(position, num_kept_);
  });
}

CheckpointStore::Found CheckpointStore::verify(int64_t step,
                                               const CheckpointContent& content) const {
  const fs::path folder = folder_.checkpoint(step);
  const FolderManifest manifest = read_folder_manifest(folder);
  Found found{step, parse_manifest(manifest, folder, step)};
  for (const auto& [name, record] : manifest.files) check_file(folder / name, record);
  if (!manifest.has_own_hash)
    log::warning(concat(folder.string(),
                        " is of an earlier version of t2r: its manifest has no hash of its own, so "
                        "that damage to the manifest itself could not be seen"));
  check_identity(found.manifest, !manifest.has_own_hash, content, folder);
  return found;
}

void CheckpointStore::read_tensors(const Found& found, const CheckpointContent& content) const {
  const fs::path folder = folder_.checkpoint(found.step);
  model::load_weights(content.model, folder, /*may_lack_new=*/false);
  const dist::ShardPlan shards(content.optimizer.first_moment().numel(), found.manifest.world);
  for (int rank = 0; rank < shards.num_ranks(); ++rank)
    read_optimizer_part(folder, content.optimizer, shards, rank);
}

std::optional<ResumedRun> CheckpointStore::load(const CheckpointContent& content) {
  using Verdict = Reading::Verdict;
  const bool is_first = communicator_.rank() == 0;
  const std::vector<int64_t> steps = steps_on_first_rank();
  std::vector<int64_t> damaged;
  std::string causes;
  for (const int64_t step : steps) {
    const fs::path folder = folder_.checkpoint(step);
    Found found;
    Reading reading = reading_of(communicator_, [&] {
      if (is_first) found = verify(step, content);
    });
    if (reading.verdict == Verdict::kGood) {
      reading = reading_of(communicator_, [&] {
        if (!is_first) found = {step, parse_manifest(read_folder_manifest(folder), folder, step)};
        read_tensors(found, content);
      });
    }
    if (reading.verdict == Verdict::kUnreadable) {
      throw UnreadableError(concat("checkpoint ",
                                   checkpoint_name(step),
                                   " cannot be read, which is "
                                   "no damage: ",
                                   reading.message,
                                   kNothingTouched,
                                   ". Start again when it can be read, or move it out of ",
                                   folder_.path().string(),
                                   " to go on from an older one"));
    }
    if (reading.verdict == Verdict::kGood) {
      settle(found.manifest.position, damaged);
      log::info(concat(
          "resumed from ", folder.string(), ", written by ", found.manifest.world, " rank(s)"));
      return ResumedRun{found.manifest.position,
                        differences(found.manifest.options, content.options)};
    }
    if (is_first)
      log::warning(concat(
          "checkpoint ", checkpoint_name(step), " is damaged and not used: ", reading.message));
    damaged.push_back(step);
    causes += concat(causes.empty() ? " " : "; ", reading.message);
  }
  if (!steps.empty()) {
    throw DataError(concat("none of the ",
                           steps.size(),
                           " checkpoints in ",
                           folder_.path().string(),
                           " can be used",
                           kNothingTouched,
                           ". Put back a copy of one, or begin anew with another --output:",
                           causes));
  }
  dist::on_first_rank(communicator_, [&] { folder_.remove_temporaries(); });
  return std::nullopt;
}

std::vector<int64_t> CheckpointStore::steps_on_first_rank() const {
  std::string text;
  dist::on_first_rank(communicator_, [&] {
    for (const int64_t step : folder_.steps()) text += std::to_string(step) + " ";
  });
  std::istringstream words(communicator_.all_gather(text).front());
  return {std::istream_iterator<int64_t>(words), std::istream_iterator<int64_t>()};
}

void CheckpointStore::settle(TrainingPosition& position,
                             const std::vector<int64_t>& damaged) const {
  std::string best;  // its step, if its checkpoint is there
  dist::on_first_rank(communicator_, [&] {
    for (const int64_t step : damaged) {
      const std::string name = folder_.set_aside(step);
      log::warning(concat("the damaged ",
                          checkpoint_name(step),
                          " is now ",
                          name,
                          ", for you to look at or remove"));
    }
    folder_.remove_temporaries();
    if (position.best.has_value()) {
      const int64_t step = position.best->step != kUnknownStep
                               ? position.best->step
                               : folder_.linked_best().value_or(kUnknownStep);
      const std::vector<int64_t> steps = folder_.steps();
      if (step <= position.step && std::find(steps.begin(), steps.end(), step) != steps.end())
        best = std::to_string(step);
    }
  });
  best = communicator_.all_gather(best).front();
  if (best.empty())
    position.best.reset();
  else
    position.best->step = std::stoll(best);
  dist::on_first_rank(communicator_, [&] { folder_.point_links(position); });
}

void CheckpointStore::warn_if_disk_is_small(const CheckpointContent& content,
                                            int64_t num_saves) const {
  if (communicator_.rank() != 0) return;
  std::error_code error;
  double one = 12.0 * static_cast<double>(content.model.parameters().num_scalars());
  for (const CompanionFile& file : content.companions)
    one += static_cast<double>(file.content.size());
  // The newest, the best, and the one that is being written.
  const double most = static_cast<double>(num_kept_) + 2.0;
  const double num_there = static_cast<double>(folder_.steps().size());
  const double num_more =
      std::clamp(most - num_there, 1.0, static_cast<double>(std::max(num_saves, int64_t{1})));
  fs::path place = folder_.path();
  while (!fs::exists(place, error) && place.has_parent_path()) place = place.parent_path();
  const fs::space_info space = fs::space(place, error);
  const auto available = static_cast<double>(space.available);
  if (error || available >= num_more * one) return;
  log::warning(concat("checkpoints will not fit: one has ",
                      one / 1e9,
                      " GB, and ",
                      num_more,
                      " more are to be there at once (keep-checkpoints = ",
                      num_kept_,
                      ", the best, and the one being written), ",
                      num_more * one / 1e9,
                      " GB; ",
                      folder_.path().string(),
                      " has ",
                      available / 1e9,
                      " GB free"));
}

}  // namespace t2r::launch
