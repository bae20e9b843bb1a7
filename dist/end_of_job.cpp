#include "dist/end_of_job.h"

#include <mpi.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <optional>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "dist/launcher.h"
#include "dist/mpi_error.h"
#include "dist/world.h"

namespace t2r::dist {
namespace {

using Clock = std::chrono::steady_clock;

// Ranks that fail together come within milliseconds; those that fail while others work lose this.
constexpr std::chrono::seconds kPatience{3};

MPI_Comm meeting_place = MPI_COMM_NULL;

bool mpi_is_running() {
  int is_initialized = 0, is_finalized = 0;
  MPI_Initialized(&is_initialized);
  MPI_Finalized(&is_finalized);
  return is_initialized != 0 && is_finalized == 0;
}

[[noreturn]] void leave(int exit_code) {
  std::cout.flush();
  std::fflush(nullptr);
  // Without MPI_Finalize, which would wait for operations that a failed step has left pending.
  std::_Exit(exit_code);
}

/// Waits for `request` until the deadline; false if the others do not come.
bool comes_true(MPI_Request& request) {
  const Clock::time_point deadline = Clock::now() + kPatience;
  for (int is_done = 0; Clock::now() < deadline;) {
    if (MPI_Test(&request, &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
    if (is_done != 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

struct LastWord {
  int64_t exit_code = 0;
  int64_t reason_hash = 0;
};

/// What every rank ends with, by rank; empty if not all of them end.
std::vector<LastWord> meet(const LastWord& own) {
  int size = 0;
  if (meeting_place == MPI_COMM_NULL || MPI_Comm_size(meeting_place, &size) != MPI_SUCCESS)
    return {};
  static std::vector<LastWord> all;  // MPI may write to it after this has given up
  static LastWord sent;
  all.resize(static_cast<size_t>(size));
  sent = own;
  MPI_Request request = MPI_REQUEST_NULL;
  if (MPI_Iallgather(&sent, 2, MPI_INT64_T, all.data(), 2, MPI_INT64_T, meeting_place, &request) !=
          MPI_SUCCESS ||
      !comes_true(request))
    return {};
  return all;
}

// mpirun ends all when the first rank has left: nobody does before the messages are out.
void wait_for_messages() {
  MPI_Request request = MPI_REQUEST_NULL;
  if (MPI_Ibarrier(meeting_place, &request) == MPI_SUCCESS) comes_true(request);
}

/// Starts MPI for the meeting. False if the launcher is not this MPI's: there is nobody to meet.
bool starts_for_meeting() {
  try {
    static World* const world = new World(nullptr, nullptr);  // never finalised
    return world->size() > 1;
  } catch (const std::exception&) {
    return false;
  }
}

/// Of processes that cannot meet, the first speaks at once. The others give its launcher the time
/// to end them; what is left speaks as well, unless MPI is alone, which it then is in all of them.
[[noreturn]] void leave_without_meeting(const std::string& reason, int exit_code, int rank) {
  int size = 1;
  if (mpi_is_running()) MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank != 0) std::this_thread::sleep_for(std::chrono::seconds(1));
  if (rank == 0 || size > 1) log::error(reason);
  leave(exit_code);
}

}  // namespace

void prepare_end_of_job() {
  if (meeting_place != MPI_COMM_NULL) return;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &meeting_place), "MPI_Comm_dup");
  check_mpi(MPI_Comm_set_errhandler(meeting_place, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

void abort_job(const std::string& reason, int exit_code) {
  int rank = 0, size = 1;
  const bool is_running = mpi_is_running();
  if (is_running) {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
  }
  if (size == 1) {
    log::error(reason);
    leave(exit_code);
  }
  log::error(concat("rank ", rank, ": ", reason, "; the job ends with exit code ", exit_code));
  std::cout.flush();
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

void end_job(const std::string& reason, int exit_code) {
  std::optional<LauncherPlace> place;
  try {
    place = launcher_place(environment_variable);
  } catch (const std::exception&) {  // is the reason itself
  }
  const bool has_others = place.has_value() && place->size > 1;
  if (has_others && meeting_place == MPI_COMM_NULL) {
    if (mpi_is_running() || !starts_for_meeting())
      leave_without_meeting(reason, exit_code, place->rank.value_or(0));
  }
  int rank = 0, size = 1;
  if (mpi_is_running()) {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
  }
  if (size == 1) abort_job(reason, exit_code);
  const auto hash = static_cast<int64_t>(std::hash<std::string>{}(reason));
  const std::vector<LastWord> words = meet({exit_code, hash});
  if (words.empty()) abort_job(reason, exit_code);
  if (rank == 0 || words.front().reason_hash != hash) log::error(reason);
  wait_for_messages();
  leave(static_cast<int>(words.front().exit_code));
}

}  // namespace t2r::dist
