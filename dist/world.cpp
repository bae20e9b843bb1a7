#include "dist/world.h"

#include <mpi.h>

#include <array>
#include <cstring>
#include <exception>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "dist/end_of_job.h"
#include "dist/mpi_error.h"

namespace t2r::dist {
namespace {

std::vector<std::string> gather_hosts(int size) {
  constexpr int kNameBytes = 256;
  std::array<char, kNameBytes> own{};
  std::strncpy(own.data(), host_name().c_str(), kNameBytes - 1);
  std::vector<char> names(static_cast<size_t>(size) * kNameBytes);
  check_mpi(
      MPI_Allgather(
          own.data(), kNameBytes, MPI_CHAR, names.data(), kNameBytes, MPI_CHAR, MPI_COMM_WORLD),
      "MPI_Allgather of host names");
  std::vector<std::string> hosts;
  for (int r = 0; r < size; ++r) hosts.emplace_back(&names[static_cast<size_t>(r) * kNameBytes]);
  return hosts;
}

std::pair<int, int> local_rank_and_size(int rank) {
  MPI_Comm local = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &local),
            "MPI_Comm_split_type");
  std::pair<int, int> result;
  check_mpi(MPI_Comm_rank(local, &result.first), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(local, &result.second), "MPI_Comm_size");
  check_mpi(MPI_Comm_free(&local), "MPI_Comm_free");
  return result;
}

}  // namespace

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING + 1> text{};
  int length = 0;
  check_mpi(MPI_Get_library_version(text.data(), &length), "MPI_Get_library_version");
  const std::string all = text.data();
  return all.substr(0, all.find('\n'));
}

World::World(int* argc, char*** argv) : exceptions_at_start_(std::uncaught_exceptions()) {
  int is_initialized = 0;
  check_mpi(MPI_Initialized(&is_initialized), "MPI_Initialized");
  require(is_initialized == 0, "World: MPI was started before; one World per process");
  int thread_level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &thread_level), "MPI_Init_thread");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
  log::set_rank(rank_, size_);
  mpi_version_ = mpi_library_version();
  if (thread_level < MPI_THREAD_SERIALIZED) {
    throw ConfigError(concat("MPI library \"",
                             mpi_version_,
                             "\" offers thread level ",
                             thread_level,
                             "; t2r needs MPI_THREAD_SERIALIZED (",
                             static_cast<int>(MPI_THREAD_SERIALIZED),
                             ")"));
  }
  check_launcher(environment_variable, rank_, size_);
  std::tie(local_rank_, local_size_) = local_rank_and_size(rank_);
  hosts_ = gather_hosts(size_);
  prepare_end_of_job();
}

World::~World() {
  if (!is_open_ || std::uncaught_exceptions() > exceptions_at_start_) return;
  try {
    close();
  } catch (const std::exception& error) {
    log::error(concat("MPI was not finalised: ", error.what()));
  }
}

void World::close() {
  if (!is_open_) return;
  is_open_ = false;
  check_mpi(MPI_Finalize(), "MPI_Finalize");
}

void World::abort(const std::string& reason, int exit_code) const {
  abort_job(reason, exit_code);
}

void World::forbid_finalize(const std::string& reason) {
  if (is_open_) log::error(concat("MPI will not be finalised: ", reason));
  is_open_ = false;
}

}  // namespace t2r::dist
