#include "dist/local_communicator.h"
#include "tests/dist_ranks.h"

namespace t2r::dist {

void run_on_ranks(const std::function<void(Communicator&)>& body) {
  for (const int size : {1, 2, 4}) run_local_ranks(size, body);
}

torch::Device tensor_device() {
  return torch::kCPU;
}

}  // namespace t2r::dist
