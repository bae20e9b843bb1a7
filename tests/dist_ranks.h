#pragma once

#include <torch/types.h>

#include <functional>

#include "dist/communicator.h"

namespace t2r::dist {

/// Runs `body` once per rank: here and now in an MPI process (dist_mpi_ranks.cpp, and
/// dist_nccl_ranks.cpp with a GPU each), on 1, 2 and 4 threads one after another otherwise
/// (dist_local_ranks.cpp). So one test file serves all communicators.
void run_on_ranks(const std::function<void(Communicator&)>& body);

/// Where run_on_ranks's communicator is tested with its tensors; inside run_on_ranks only.
torch::Device tensor_device();

inline torch::Tensor on_device(const torch::Tensor& tensor) {
  return tensor.to(tensor_device());
}

}  // namespace t2r::dist
