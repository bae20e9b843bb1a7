#pragma once

#include <torch/types.h>

#include <string>

#include "base/error.h"
#include "dist/communicator.h"

namespace t2r::dist {

/// Ranks that must hold the same bits do not: a damaged memory or device, or our bug.
class ReplicaError : public Error {
 public:
  explicit ReplicaError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// Gives every rank root's bits of the flat parameter arena. Collective: every rank, same order.
///
/// @param flat  1-D, contiguous; on any device that the communicator serves
/// @throws ContractError  if flat is not 1-D and contiguous
void broadcast_parameters(Communicator& communicator, const torch::Tensor& flat, int root = 0);

/// Compares the bits of `flat` over all ranks by their hashes. Collective: every rank, same order.
///
/// @param what  what is compared, for the message, e.g. "parameters after step 100"
/// @throws ReplicaError  on every rank, the same message: the ranks that differ from the majority,
///                       or all groups of equal ranks where no majority exists
/// @note  Copies a device tensor to the host and waits for it.
void check_replicas_equal(Communicator& communicator,
                          const torch::Tensor& flat,
                          const std::string& what);

}  // namespace t2r::dist
