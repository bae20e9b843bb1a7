#include "launch/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "launch/agreement.h"

namespace t2r::launch {
namespace {

// Keeps the descriptor: the lock lives as long as it is open, and dies with the process.
int lock_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw WriteError(concat(folder.string(), ": cannot create: ", error.message()));
  const std::filesystem::path file = folder / "lock";
  const int descriptor = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0)
    throw WriteError(concat(file.string(), ": cannot create: ", std::strerror(errno)));
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    std::array<char, 256> holder{};
    const ssize_t size = ::read(descriptor, holder.data(), holder.size() - 1);
    ::close(descriptor);
    throw WriteError(concat(folder.string(),
                            ": another run is using this folder",
                            size > 0 ? concat(" (", holder.data(), ")") : "",
                            "; choose another --output"));
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

}  // namespace

RunFolder::RunFolder(std::filesystem::path path, dist::Communicator& communicator)
    : path_(std::move(path)) {
  on_first_rank(communicator, [&] { lock_ = lock_folder(path_); });
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

}  // namespace t2r::launch
