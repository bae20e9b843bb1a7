#pragma once

#include "dist/communicator.h"
#include "dist/gpu_assignment.h"
#include "dist/world.h"

namespace t2r::dist {

/// The number of the GPU that this rank shall use. Collective: every rank, same order.
///
/// @param host  a communicator of CPU tensors
/// @throws ConfigError  on every rank, the same message: a host without a GPU, or with more ranks
///                      than GPUs (see assign_gpus)
int choose_device(const World& world, Communicator& host);

/// The GPU with this number, made the calling thread's device. Local.
/// @throws ConfigError  if this process sees no such GPU
UsedGpu use_gpu(int device, const std::string& host);

}  // namespace t2r::dist
