#include "launch/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <sstream>
#include <utility>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/log.h"
#include "dist/agreement.h"

namespace t2r::launch {
namespace {

constexpr const char* kLockFile = "lock";

[[noreturn]] void refuse_second_run(const std::filesystem::path& folder) {
  std::array<char, 256> holder{};
  const int descriptor = ::open((folder / kLockFile).c_str(), O_RDONLY | O_CLOEXEC);
  const ssize_t size = ::read(descriptor, holder.data(), holder.size() - 1);
  ::close(descriptor);
  throw WriteError(concat(folder.string(),
                          ": another run is using this folder",
                          size > 0 ? concat(" (", holder.data(), ")") : "",
                          "; choose another --output"));
}

// A lock on the folder itself: unlike the file's it stays where somebody removes the file. Not
// every file system has it, and then the file's alone counts.
int lock_itself(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0 || ::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return descriptor;
  const bool is_held = errno == EWOULDBLOCK;
  ::close(descriptor);
  if (is_held) refuse_second_run(folder);
  return -1;
}

// Keeps the descriptor: the lock lives as long as it is open, and dies with the process.
int lock_file(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kLockFile;
  const int descriptor = open_regular_file(file, O_RDWR | O_CREAT);
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const int cause = errno;
    if (cause != EWOULDBLOCK) {  // some network file systems have no locks
      log::warning(concat(file.string(),
                          ": cannot be locked (",
                          std::strerror(cause),
                          "): a second run on this folder will not be noticed"));
      ::close(descriptor);
      return -1;
    }
    ::close(descriptor);
    refuse_second_run(folder);
  }
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const std::string holder = concat("process ", ::getpid(), " on ", host.data());
  if (::ftruncate(descriptor, 0) != 0 || ::write(descriptor, holder.data(), holder.size()) < 0) {
    const int cause = errno;
    ::close(descriptor);
    throw WriteError(concat(file.string(), ": cannot write: ", std::strerror(cause)));
  }
  return descriptor;
}

// "table.key" to value of a file with one option a line, as OptionSet::dump() writes them.
std::map<std::string, std::string> options_of(const std::string& text) {
  std::map<std::string, std::string> options;
  std::istringstream lines(text);
  std::string table;
  for (std::string line; std::getline(lines, line);) {
    const size_t equals = line.find(" = ");
    if (line.starts_with('[')) {
      table = line.substr(1, line.find(']') - 1) + ".";
    } else if (!line.starts_with('#') && equals != std::string::npos) {
      options[table + line.substr(0, equals)] = line.substr(equals + 3);
    }
  }
  return options;
}

}  // namespace

RunFolder::RunFolder(std::filesystem::path path, dist::Communicator& communicator)
    : path_(std::move(path)) {
  dist::on_first_rank(communicator, [&] {
    std::error_code error;
    std::filesystem::create_directories(path_, error);
    if (error) throw WriteError(concat(path_.string(), ": cannot create: ", error.message()));
    locks_[0] = lock_itself(path_);
    locks_[1] = lock_file(path_);
  });
}

RunFolder::~RunFolder() {
  for (const int lock : locks_)
    if (lock >= 0) ::close(lock);
}

std::string replace_config(const std::filesystem::path& folder, const std::string& text) {
  const std::filesystem::path file = folder / "config.toml";
  std::string changes;
  if (std::filesystem::exists(file)) {
    const std::map<std::string, std::string> before = options_of(read_file(file));
    for (const auto& [key, value] : options_of(text)) {
      const auto old = before.find(key);
      if (old == before.end() || old->second == value) continue;
      changes += concat(changes.empty() ? "" : "; ", key, ": ", old->second, " -> ", value);
    }
  }
  write_file_durably(file, text);
  return changes;
}

}  // namespace t2r::launch
