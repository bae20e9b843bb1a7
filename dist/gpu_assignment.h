#pragma once

#include <string>
#include <vector>

namespace t2r::dist {

/// The GPUs that one rank sees, in the order of their device numbers.
struct VisibleGpus {
  std::string host;
  std::vector<std::string> ids;  ///< unique names (UUIDs): the same GPU has the same on every rank
  std::string why_none;          ///< CUDA's words if it finds no GPU
};

/// The device number that each rank takes, by rank: its first GPU that no lower rank has. So ranks
/// that see the same GPUs take one each in order, and a rank that its launcher gave one GPU of its
/// own takes that. Pure. Local.
///
/// @throws ConfigError  naming the host and its ranks, if a rank sees no GPU or none is left for it
std::vector<int> assign_gpus(const std::vector<VisibleGpus>& gpus_of_rank);

/// The GPU that one rank has taken.
struct UsedGpu {
  std::string host;
  int device = 0;
  std::string id;      ///< as in VisibleGpus
  std::string bus_id;  ///< where it is plugged in, for the message
};

/// Refuses two ranks on one GPU, where NCCL would hang or fail without a reason. Pure. Local.
///
/// @throws ConfigError  naming the ranks, their host and the GPU
void check_no_gpu_is_shared(const std::vector<UsedGpu>& gpu_of_rank);

}  // namespace t2r::dist
