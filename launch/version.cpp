#include "launch/version.h"

#include <torch/version.h>

#include "base/error.h"
#include "data/h5_file.h"
#include "dist/world.h"

namespace t2r::launch {

std::string version_text() {
  const std::string commit = T2R_COMMIT;
  return concat("t2r ",
                T2R_VERSION,
                commit.empty() ? "" : concat(" (", commit, ")"),
                "\nLibTorch ",
                TORCH_VERSION,
                "\nCUDA: ",
                T2R_HAS_CUDA ? "yes" : "no",
                "\n",
                dist::mpi_library_version(),
                "\nHDF5 ",
                data::hdf5_version(),
                "\n");
}

}  // namespace t2r::launch
