#pragma once

#include <string>

#include "base/error.h"

namespace t2r::dist {

/// An MPI call that did not return MPI_SUCCESS.
class MpiError : public Error {
 public:
  explicit MpiError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// Throws unless `code` is MPI_SUCCESS; every MPI call of t2r goes through here. Local.
///
/// @param call  the call as people should read it, e.g. "MPI_Barrier"
/// @param file, line  the caller's (clang 14 has no std::source_location)
/// @throws MpiError  with call, place, rank, host, code and MPI's own text
void check_mpi(int code,
               const char* call,
               const char* file = __builtin_FILE(),
               int line = __builtin_LINE());

/// What a host is called: gethostname(), or "unknown host". Local.
std::string host_name();

}  // namespace t2r::dist
