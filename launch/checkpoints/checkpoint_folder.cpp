#include "launch/checkpoints/checkpoint_folder.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <set>
#include <system_error>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/log.h"
#include "launch/checkpoints/checkpoint_manifest.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kTemporary = ".tmp.";
constexpr std::string_view kAside = "damaged-";
constexpr const char* kLatest = "latest";
constexpr const char* kBest = "best";

/// The number that `digits` are and nothing else; none if there is anything else.
std::optional<int64_t> number_of(std::string_view digits) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 0)
    return std::nullopt;
  return value;
}

/// Whether a process is dead and its parent has not asked for it yet: in a container that may never
/// happen.
bool is_zombie(int64_t process) {
  std::ifstream file(concat("/proc/", process, "/stat"));
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');  // the name may hold anything
  return name_end != std::string::npos && text.compare(name_end, 3, ") Z") == 0;
}

bool is_alive(int64_t process) {
  return process != ::getpid() && (::kill(static_cast<pid_t>(process), 0) == 0 || errno == EPERM) &&
         !is_zombie(process);
}

/// Whether a name is temporary_sibling() of `stem`, made by a process that is gone.
bool is_stale_temporary(const std::string& name, const auto& is_stem) {
  const size_t dot = name.rfind(kTemporary);
  if (dot == std::string::npos || !is_stem(name.substr(0, dot))) return false;
  const std::string_view digits = std::string_view(name).substr(dot + kTemporary.size());
  const std::optional<int64_t> process = number_of(digits);
  return process.has_value() && digits == std::to_string(*process) && !is_alive(*process);
}

std::vector<fs::directory_entry> entries(const fs::path& folder) {
  std::vector<fs::directory_entry> found;
  std::error_code error;
  fs::directory_iterator position(folder, error);
  for (; !error && position != fs::directory_iterator(); position.increment(error))
    found.push_back(*position);
  if (error && error != std::errc::no_such_file_or_directory)
    throw_read_error(folder, "list", error.value());
  return found;
}

/// Several parts of a command ask which checkpoint is meant, one after another.
void warn_once(const std::string& message) {
  static std::set<std::string> said;
  if (said.insert(message).second) log::warning_of_first_rank(message);
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  char name[40];
  std::snprintf(name, sizeof(name), "step-%08lld", static_cast<long long>(step));
  return name;
}

std::optional<int64_t> checkpoint_step(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::optional<int64_t> step = number_of(std::string_view(name).substr(kPrefix.size()));
  if (!step.has_value() || checkpoint_name(*step) != name) return std::nullopt;
  return step;
}

std::vector<int64_t> CheckpointFolder::steps() const {
  std::vector<int64_t> found;
  for (const fs::directory_entry& entry : entries(path_)) {
    const std::optional<int64_t> step = checkpoint_step(entry.path().filename().string());
    std::error_code ignored;
    if (step.has_value() && !entry.is_symlink(ignored)) found.push_back(*step);
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

fs::path CheckpointFolder::make_temporary(int64_t step) const {
  const fs::path temporary = temporary_sibling(checkpoint(step));
  std::error_code error;
  fs::remove_all(temporary, error);  // of a killed process that had this one's number
  fs::create_directories(path_, error);
  if (!error) fs::create_directory(temporary, error);
  if (error) throw WriteError(concat(temporary.string(), ": cannot create: ", error.message()));
  return temporary;
}

bool CheckpointFolder::publish(const fs::path& temporary, int64_t step) const {
  sync_path(temporary);
  std::error_code ignored;
  if (fs::symlink_status(checkpoint(step), ignored).type() != fs::file_type::not_found) {
    log::warning(
        concat(checkpoint(step).string(), " was there already: it is now ", set_aside(step)));
  }
  std::error_code error;
  fs::rename(temporary, checkpoint(step), error);
  if (error) {
    throw WriteError(
        concat(checkpoint(step).string(), ": cannot rename into place: ", error.message()));
  }
  // From here on it is a checkpoint: whoever called it not saved would set it aside, saving again.
  try {
    sync_path(path_);
  } catch (const WriteError& failure) {
    log::warning(concat(failure.what(),
                        "; ",
                        checkpoint_name(step),
                        " is whole, but a power cut might lose it: older ones stay"));
    return false;
  }
  return true;
}

void CheckpointFolder::point_links(const TrainingPosition& position) const {
  point_link(kLatest, position.step);
  point_link(kBest, position.best_step());
}

void CheckpointFolder::point_link(const char* name, const std::optional<int64_t>& step) const {
  const fs::path link = path_ / name;
  std::error_code error;
  const std::string target = step.has_value() ? checkpoint_name(*step) : "";
  if (fs::read_symlink(link, error).string() == target) return;
  const fs::file_type type = fs::symlink_status(link, error).type();
  if (target.empty()) {
    if (type == fs::file_type::symlink) fs::remove(link, error);
    return;
  }
  const fs::path temporary = temporary_sibling(link);
  fs::remove(temporary, error);
  fs::create_directory_symlink(target, temporary, error);
  if (!error) fs::rename(temporary, link, error);
  if (!error) {
    try {
      sync_path(path_);
    } catch (const WriteError& failure) {
      log::warning(failure.what());
    }
    return;
  }
  log::warning(concat(link.string(),
                      ": cannot link to ",
                      target,
                      " (",
                      error.message(),
                      "); the checkpoint itself is whole, use it by its own name"));
  std::error_code ignored;
  fs::remove(temporary, ignored);
}

std::optional<int64_t> CheckpointFolder::linked_best() const {
  std::error_code error;
  return checkpoint_step(fs::read_symlink(path_ / kBest, error).string());
}

void CheckpointFolder::remove_old(const TrainingPosition& position, int64_t num_kept) const {
  std::vector<int64_t> there;
  try {
    there = steps();
  } catch (const DataError& error) {
    log::warning(concat(error.what(), "; old checkpoints are not removed this time"));
  }
  int64_t num_seen = 0;
  for (const int64_t step : there) {
    if (step > position.step || ++num_seen <= num_kept || step == position.step ||
        step == position.best_step())
      continue;
    // Under another name first: a kill in between must not leave half of a checkpoint as one.
    const fs::path folder = checkpoint(step), temporary = temporary_sibling(folder);
    std::error_code error;
    fs::remove_all(temporary, error);
    fs::rename(folder, temporary, error);
    if (!error) fs::remove_all(temporary, error);
    if (error)
      log::warning(
          concat(folder.string(), ": cannot remove this old checkpoint: ", error.message()));
  }
}

std::string CheckpointFolder::set_aside(int64_t step) const {
  const std::string first = std::string(kAside) + checkpoint_name(step);
  std::string name = first;
  std::error_code error;
  for (int i = 2; fs::symlink_status(path_ / name, error).type() != fs::file_type::not_found; ++i)
    name = concat(first, "-", i);
  rename_durably(checkpoint(step), path_ / name);
  return name;
}

void CheckpointFolder::remove_temporaries() const {
  const auto is_checkpoint = [](const std::string& stem) {
    return checkpoint_step(stem).has_value();
  };
  const auto is_link = [](const std::string& stem) { return stem == kLatest || stem == kBest; };
  const auto is_manifest = [](const std::string& stem) { return stem == kManifestFile; };
  std::error_code ignored;
  for (const fs::directory_entry& entry : entries(path_)) {
    const std::string name = entry.path().filename().string();
    const bool is_symlink = entry.is_symlink(ignored);
    if (is_symlink ? is_stale_temporary(name, is_link)
                   : entry.is_directory(ignored) && is_stale_temporary(name, is_checkpoint))
      fs::remove_all(entry.path(), ignored);
    if (is_symlink || !is_checkpoint(name)) continue;
    for (const fs::directory_entry& inner : entries(entry.path())) {
      if (is_stale_temporary(inner.path().filename().string(), is_manifest))
        fs::remove(inner.path(), ignored);
    }
  }
}

fs::path resolve_checkpoint(const fs::path& folder) {
  const fs::path plain = folder.has_filename() ? folder : folder.parent_path();  // without "/"
  const std::string name = plain.filename().string();
  if (name != kLatest && name != kBest) return folder;
  const fs::path parent = plain.parent_path();
  const CheckpointFolder checkpoints(parent.empty() ? "." : parent);
  for (const int64_t step : checkpoints.steps()) {
    try {
      const fs::path checkpoint = checkpoints.checkpoint(step);
      const FolderManifest manifest = read_folder_manifest(checkpoint);
      if (!manifest.has_own_hash) return folder;
      const TrainingPosition position =
          parse_checkpoint_manifest(manifest, step, (checkpoint / kManifestFile).string()).position;
      const std::optional<int64_t> meant =
          name == kLatest ? std::optional(step) : position.best_step();
      std::error_code ignored;
      if (!meant.has_value() || !fs::is_directory(checkpoints.checkpoint(*meant), ignored))
        return folder;
      return checkpoints.checkpoint(*meant);
    } catch (const UnreadableError&) {
      throw;                            // it may be whole, and then no other is meant
    } catch (const DataError& error) {  // the next older one says it, as loading would
      warn_once(
          concat("checkpoint ", checkpoint_name(step), " is damaged and not used: ", error.what()));
    }
  }
  return folder;
}

}  // namespace t2r::launch
