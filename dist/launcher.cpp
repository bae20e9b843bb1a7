#include "dist/launcher.h"

#include <charconv>
#include <cstdlib>

#include "base/error.h"

namespace t2r::dist {
namespace {

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

}  // namespace

std::optional<std::string> environment_variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return value;
}

std::optional<LauncherPlace> launcher_place(const EnvironmentLookup& environment) {
  LauncherPlace place;
  if (environment("OMPI_COMM_WORLD_SIZE")) {
    place.rank_variable = "OMPI_COMM_WORLD_RANK";
    place.size_variable = "OMPI_COMM_WORLD_SIZE";
  } else if (environment("PMI_SIZE")) {
    place.rank_variable = "PMI_RANK";
    place.size_variable = "PMI_SIZE";
  } else if (environment("SLURM_STEP_ID")) {
    const bool has_step_size = environment("SLURM_STEP_NUM_TASKS").has_value();
    place.rank_variable = "SLURM_PROCID";
    place.size_variable = has_step_size ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  } else {
    return std::nullopt;
  }
  const std::optional<int> size = read_int(environment, place.size_variable);
  if (!size.has_value()) return std::nullopt;
  place.size = *size;
  place.rank = read_int(environment, place.rank_variable);
  return place;
}

void check_launcher(const EnvironmentLookup& environment, int mpi_rank, int mpi_size) {
  if (const std::optional<LauncherPlace> place = launcher_place(environment)) {
    if (place->size != mpi_size) {
      const char* what = mpi_size == 1
                             ? "every process would train alone and overwrite the others' output"
                             : "launcher and MPI count different processes";
      refuse(place->size_variable, place->size, what, mpi_rank, mpi_size);
    }
    if (place->rank.value_or(mpi_rank) != mpi_rank)
      refuse(place->rank_variable, *place->rank, "the ranks differ", mpi_rank, mpi_size);
  }
  const std::optional<int> pmix_rank = read_int(environment, "PMIX_RANK");
  if (pmix_rank && *pmix_rank != mpi_rank) {
    refuse("PMIX_RANK", *pmix_rank, "the ranks differ", mpi_rank, mpi_size);
  }
}

void check_started_alone(const EnvironmentLookup& environment, const std::string& command) {
  const std::optional<LauncherPlace> place = launcher_place(environment);
  if (!place.has_value() || place->size <= 1) return;
  throw ConfigError(
      concat("t2r ",
             command,
             " is one process, and ",
             place->size_variable,
             "=",
             place->size,
             ": each of them would do the same work; start it without mpirun or srun"));
}

}  // namespace t2r::dist
