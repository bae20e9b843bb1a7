#include "data/prepare_lm.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "data/corpus.h"
#include "data/document_encoder.h"

namespace t2r::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStagingPrefix = "prepare-rank-";
constexpr const char* kReplacedFolder = "replaced";

void check_options(const PrepareLmOptions& options) {
  if (options.tokens_per_shard < 0) {
    throw ConfigError(concat(
        "tokens_per_shard is ", options.tokens_per_shard, ", must be positive, or 0 for no limit"));
  }
  if (options.max_piece_bytes < 4) {
    throw ConfigError(
        concat("max_piece_bytes is ", options.max_piece_bytes, ", must be at least 4"));
  }
}

/// This rank's groups, largest first.
std::vector<const InputGroup*> groups_of_rank(const LmPlan& plan, int rank, int world) {
  std::vector<const InputGroup*> all;
  for (const InputGroup& group : plan.groups) all.push_back(&group);
  std::sort(all.begin(), all.end(), [](const InputGroup* a, const InputGroup* b) {
    return a->num_bytes != b->num_bytes ? a->num_bytes > b->num_bytes : a->stem < b->stem;
  });
  std::vector<const InputGroup*> mine;
  for (size_t i = static_cast<size_t>(rank); i < all.size(); i += static_cast<size_t>(world)) {
    mine.push_back(all[i]);
  }
  return mine;
}

/// Everything in the output folder, sorted by name.
std::vector<fs::path> list_output(const fs::path& output) {
  try {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::directory_iterator(output)) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    return paths;
  } catch (const fs::filesystem_error& error) {
    throw WriteError(error.what());
  }
}

bool is_filled(const LmPlan& plan) {
  return !plan.groups.empty() && is_filled_stem(plan.groups.front().stem);
}

/// Shards that an earlier run made of these inputs, or may have: those of several inputs.
std::vector<fs::path> find_old_shards(const LmPlan& plan) {
  std::set<std::string> stems;
  for (const InputGroup& group : plan.groups) {
    for (const PrepareInput& input : group.inputs) stems.insert(input.path.stem().string());
  }
  std::vector<fs::path> found;
  for (const fs::path& path : list_output(plan.options.output)) {
    const std::string stem = shard_stem(path);
    if (stem.empty()) continue;
    if (stems.contains(stem) || is_filled_stem(stem)) found.push_back(path);
  }
  return found;
}

void remove_or_throw(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) throw WriteError(concat(path.string(), ": cannot remove: ", error.message()));
}

fs::path staging_path(const fs::path& output, int rank) {
  return output / concat(kStagingPrefix, rank, kUnfinishedSuffix);
}

bool is_staging_folder(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with(kStagingPrefix) && name.ends_with(kUnfinishedSuffix);
}

void make_staging_folder(const fs::path& path) {
  std::error_code error;
  const bool is_made = fs::create_directory(path, error);
  if (error) throw WriteError(concat(path.string(), ": cannot create: ", error.message()));
  if (is_made) return;
  throw ConfigError(concat(path.string(),
                           ": is there already: another t2r prepare is writing to this folder, or "
                           "one was killed; if none is running, use --overwrite"));
}

}  // namespace

LmPlan plan_lm(PrepareLmOptions options) {
  check_options(options);
  std::vector<InputGroup> groups = group_inputs(options);
  return {std::move(options), std::move(groups)};
}

void clear_lm_output(const LmPlan& plan) {
  const fs::path& output = plan.options.output;
  std::error_code error;
  fs::create_directories(output, error);
  if (error) throw WriteError(concat(output.string(), ": cannot create: ", error.message()));
  for (const fs::path& path : list_output(output)) {
    if (!is_staging_folder(path)) continue;
    if (plan.options.overwrite) {
      remove_or_throw(path);
    } else {
      throw ConfigError(
          concat(path.string(),
                 ": another t2r prepare is writing to this folder, or one was killed; "
                 "if none is running, use --overwrite"));
    }
  }
  const std::vector<fs::path> old = find_old_shards(plan);
  const auto other = std::find_if(old.begin(), old.end(), [&](const fs::path& path) {
    return !is_filled(plan) && is_filled_stem(shard_stem(path));
  });
  if (other != old.end()) {
    throw ConfigError(concat(other->string(),
                             ": holds several inputs, maybe some of these, which would be there "
                             "twice; use another output folder, or --fill-shards true"));
  }
  if (!old.empty() && !plan.options.overwrite) {
    throw ConfigError(concat(old.front().string(),
                             ": is there already (one of ",
                             old.size(),
                             "); use --overwrite, or another output folder"));
  }
}

StagedLm::StagedLm(StagedLm&& other) noexcept
    : output_(std::move(other.output_)),
      staging_(std::exchange(other.staging_, {})),
      replaced_(std::move(other.replaced_)),
      moves_(std::exchange(other.moves_, {})),
      summary_(std::move(other.summary_)) {}

StagedLm::~StagedLm() {
  std::error_code ignored;
  for (auto move = moves_.rbegin(); move != moves_.rend(); ++move) {
    fs::rename(move->to, move->from, ignored);
  }
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

void StagedLm::move(const fs::path& from, const fs::path& to) {
  rename_durably(from, to);
  moves_.push_back({from, to});
}

void StagedLm::publish() {
  if (!replaced_.empty()) {
    std::error_code error;
    const fs::path folder = staging_ / kReplacedFolder;
    fs::create_directory(folder, error);
    if (error) throw WriteError(concat(folder.string(), ": cannot create: ", error.message()));
    for (const fs::path& old : replaced_) move(old, folder / old.filename());
  }
  for (fs::path& shard : summary_.shards) {
    const fs::path target = output_ / shard.filename();
    move(shard, target);
    shard = target;
  }
}

void StagedLm::complete() {
  moves_.clear();
  if (!staging_.empty()) remove_or_throw(std::exchange(staging_, {}));
}

StagedLm stage_lm(const Tokenizer& tokenizer,
                  const LmPlan& plan,
                  int rank,
                  int world,
                  const PrepareProgress& progress) {
  require(world >= 1 && rank >= 0 && rank < world,
          concat("stage_lm: rank ", rank, " is outside [0, ", world, ")"));
  const PrepareLmOptions& options = plan.options;
  const std::vector<const InputGroup*> groups = groups_of_rank(plan, rank, world);
  StagedLm staged;
  staged.output_ = options.output;
  if (groups.empty() && rank != 0) return staged;
  make_staging_folder(staging_path(options.output, rank));
  staged.staging_ = staging_path(options.output, rank);
  // Nothing is published before every rank has staged: what is there now is an earlier run's.
  std::set<std::string> own_stems, all_stems;
  for (const InputGroup* group : groups) own_stems.insert(group->stem);
  for (const InputGroup& group : plan.groups) all_stems.insert(group.stem);
  for (const fs::path& old : find_old_shards(plan)) {
    const std::string stem = shard_stem(old);
    if (own_stems.contains(stem) || (rank == 0 && !all_stems.contains(stem))) {
      staged.replaced_.push_back(old);
    }
  }

  int64_t bytes_total = 0, bytes_before = 0;
  for (const InputGroup* group : groups) bytes_total += group->num_bytes;
  ShardDescription description{
      .vocab_size = tokenizer.vocab_size(), .tokenizer_hash = tokenizer.hash(), .source = {}};
  if (options.add_begin_of_text) description.begin_of_text = tokenizer.begin_of_text();
  for (const InputGroup* group : groups) {
    ShardSeries shards(staged.staging_, group->stem, description, options.tokens_per_shard);
    for (const PrepareInput& input : group->inputs) {
      const bool has_tokens =
          encode_file(tokenizer, options, input, shards, [&](int64_t bytes_done) {
            if (progress) progress(bytes_before + bytes_done, bytes_total);
          });
      if (has_tokens) ++staged.summary_.num_inputs;
      if (!has_tokens) staged.summary_.empty_inputs.push_back(input.path);
      bytes_before += input.num_bytes;
    }
    shards.finish(staged.summary_);
  }
  return staged;
}

void check_any_tokens(const LmPlan& plan, const PrepareSummary& totals) {
  if (totals.num_tokens > 0) return;
  const PrepareInput& first = plan.groups.front().inputs.front();
  throw DataError(concat(first.path.string(),
                         plan.options.inputs.size() > 1
                             ? concat(": gives no tokens, and neither do the other ",
                                      plan.options.inputs.size() - 1,
                                      " input(s)")
                             : concat(": gives no tokens (", first.num_bytes, " bytes of text)")));
}

PrepareSummary prepare_lm(const Tokenizer& tokenizer,
                          const PrepareLmOptions& options,
                          const PrepareProgress& progress) {
  const LmPlan plan = plan_lm(options);
  clear_lm_output(plan);
  StagedLm staged = stage_lm(tokenizer, plan, 0, 1, progress);
  check_any_tokens(plan, staged.summary());
  staged.publish();
  staged.complete();
  return staged.summary();
}

}  // namespace t2r::data
