#include "dist/mpi_communicator.h"
#include "tests/dist_ranks.h"
#include "tests/mpi_main.h"

namespace t2r::dist {

void run_on_ranks(const std::function<void(Communicator&)>& body) {
  MpiCommunicator communicator(test_world());
  body(communicator);
}

torch::Device tensor_device() {
  return torch::kCPU;
}

}  // namespace t2r::dist
