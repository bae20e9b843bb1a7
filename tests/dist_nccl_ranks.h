#pragma once

#include "dist/nccl/nccl_communicator.h"

namespace t2r::dist {

/// The communicator that run_on_ranks hands out in dist_nccl_ranks.cpp: one for all tests.
/// Collective.
NcclCommunicator& test_nccl();

}  // namespace t2r::dist
