#pragma once

#include <string>

#include "base/error.h"

namespace t2r::dist {

/// An NCCL call that failed, or that a peer kept from ending.
class NcclError : public Error {
 public:
  explicit NcclError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// A CUDA call of dist that did not return cudaSuccess.
class CudaError : public Error {
 public:
  explicit CudaError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// Where a rank runs, as every message about NCCL names it.
struct RankPlace {
  int rank = 0;
  std::string host;
  int device = 0;
  std::string bus_id;  ///< PCI bus id of the GPU
};

/// "rank 1 (host node7, GPU 0 at 0000:1b:00.0)". Local.
std::string to_string(const RankPlace& place);

/// Message of an NCCL call that returned an error: call, place, code, NCCL's text for the code and
/// its last words (may be empty), and what to look at. Local.
std::string describe_nccl_failure(const std::string& call,
                                  const RankPlace& place,
                                  int code,
                                  const std::string& text,
                                  const std::string& last_error);

/// Message of something that did not end in time. Local.
std::string describe_nccl_hang(const std::string& call, const RankPlace& place, double seconds);

}  // namespace t2r::dist
