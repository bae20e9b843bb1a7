#pragma once

#include <functional>

#include "dist/communicator.h"

namespace t2r::dist {

/// Runs `body` once per rank: here and now in an MPI process (mpi_main.cpp), on 1, 2 and 4 threads
/// one after another otherwise (dist_local_ranks.cpp). So one test file serves both communicators.
void run_on_ranks(const std::function<void(Communicator&)>& body);

}  // namespace t2r::dist
