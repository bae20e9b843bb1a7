#include "dist/mpi_error.h"

#include <mpi.h>
#include <unistd.h>

#include <array>

namespace t2r::dist {
namespace {

bool is_mpi_running() {
  int is_initialized = 0;
  int is_finalized = 0;
  MPI_Initialized(&is_initialized);
  MPI_Finalized(&is_finalized);
  return is_initialized != 0 && is_finalized == 0;
}

// Only while MPI runs: outside, Open MPI ends the process when asked for a text.
std::string mpi_text(int code) {
  std::array<char, MPI_MAX_ERROR_STRING + 1> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return "no text for this code";
  return text.data();
}

}  // namespace

void check_mpi(int code, const char* call, const char* file, int line) {
  if (code == MPI_SUCCESS) return;
  std::string rank = "?";
  std::string text = "MPI is not running, so it has no text for this code";
  if (is_mpi_running()) {
    int number = 0;
    if (MPI_Comm_rank(MPI_COMM_WORLD, &number) == MPI_SUCCESS) rank = std::to_string(number);
    text = mpi_text(code);
  }
  throw MpiError(concat(call,
                        " failed on rank ",
                        rank,
                        " (host ",
                        host_name(),
                        ") at ",
                        file,
                        ":",
                        line,
                        ": code ",
                        code,
                        ", ",
                        text));
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown host";
  return name.data();
}

}  // namespace t2r::dist
