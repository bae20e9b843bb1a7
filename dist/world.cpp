#include "dist/world.h"

#include <mpi.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "dist/mpi_error.h"

namespace t2r::dist {
namespace {

struct LauncherView {
  const char* rank_variable;
  const char* size_variable;
};

std::optional<std::string> environment_variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

std::optional<int> read_int(const EnvironmentLookup& environment, const char* name) {
  const std::optional<std::string> text = environment(name);
  if (!text || text->empty()) return std::nullopt;
  int value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || value < 0) {
    throw ConfigError(concat("environment variable ",
                             name,
                             "=\"",
                             *text,
                             "\": the launcher sets it to an integer >= 0; unset it or start the "
                             "program through mpirun or srun --mpi=pmix"));
  }
  return value;
}

void refuse(const char* variable, int launcher_value, const char* what, int mpi_rank, int size) {
  throw ConfigError(concat("the launcher says ",
                           variable,
                           "=",
                           launcher_value,
                           ", but MPI says that this process is rank ",
                           mpi_rank,
                           " of ",
                           size,
                           ": ",
                           what,
                           ". Start with the mpirun of the MPI library that t2r is linked with, "
                           "or with srun --mpi=pmix (srun --mpi=list shows what Slurm offers)"));
}

std::optional<LauncherView> launcher_view(const EnvironmentLookup& environment) {
  if (environment("OMPI_COMM_WORLD_SIZE")) {
    return LauncherView{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"};
  }
  if (environment("PMI_SIZE")) return LauncherView{"PMI_RANK", "PMI_SIZE"};
  if (environment("SLURM_STEP_ID")) {
    const bool has_step_size = environment("SLURM_STEP_NUM_TASKS").has_value();
    return LauncherView{"SLURM_PROCID", has_step_size ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS"};
  }
  return std::nullopt;
}

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

std::string library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING + 1> text{};
  int length = 0;
  check_mpi(MPI_Get_library_version(text.data(), &length), "MPI_Get_library_version");
  const std::string all = text.data();
  return all.substr(0, all.find('\n'));
}

}  // namespace

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
  mpi_version_ = library_version();
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

void abort_job(const std::string& reason, int exit_code) {
  log::error(concat("abort, exit code ", exit_code, ": ", reason));
  int is_initialized = 0;
  int is_finalized = 0;
  MPI_Initialized(&is_initialized);
  MPI_Finalized(&is_finalized);
  if (is_initialized != 0 && is_finalized == 0) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

void check_launcher(const EnvironmentLookup& environment, int mpi_rank, int mpi_size) {
  if (const std::optional<LauncherView> view = launcher_view(environment)) {
    const std::optional<int> size = read_int(environment, view->size_variable);
    if (size && *size != mpi_size) {
      const char* what = mpi_size == 1
                             ? "every process would train alone and overwrite the others' output"
                             : "launcher and MPI count different processes";
      refuse(view->size_variable, *size, what, mpi_rank, mpi_size);
    }
    const std::optional<int> rank = read_int(environment, view->rank_variable);
    if (rank && *rank != mpi_rank) {
      refuse(view->rank_variable, *rank, "the ranks differ", mpi_rank, mpi_size);
    }
  }
  const std::optional<int> pmix_rank = read_int(environment, "PMIX_RANK");
  if (pmix_rank && *pmix_rank != mpi_rank) {
    refuse("PMIX_RANK", *pmix_rank, "the ranks differ", mpi_rank, mpi_size);
  }
}

}  // namespace t2r::dist
