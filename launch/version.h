#pragma once

#include <string>

namespace t2r::launch {

/// What this program is and what it was built with, one line each: version and commit, LibTorch,
/// CUDA, MPI, HDF5. The commit is that of the last configuration of the build, where git knew one.
std::string version_text();

}  // namespace t2r::launch
