#include "tests/dist_nccl_ranks.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "dist/mpi_communicator.h"
#include "dist/nccl/gpu_device.h"
#include "tests/dist_ranks.h"
#include "tests/mpi_main.h"

namespace t2r::dist {
namespace {

struct Shared {
  MpiCommunicator host = MpiCommunicator(test_world());
  int device = choose_device(test_world(), host);
  NcclCommunicator nccl = NcclCommunicator(test_world(),
                                           host,
                                           {.device = device,
                                            .init_deadline = std::chrono::seconds(60),
                                            .wait_deadline = std::chrono::seconds(60)});
};

std::unique_ptr<Shared> shared;

// The first test that needs NCCL starts it; it has to end before MPI does.
class EndsNccl : public testing::Environment {
 public:
  void TearDown() override { shared.reset(); }
};

const testing::Environment* const kEndsNccl = testing::AddGlobalTestEnvironment(new EndsNccl);

}  // namespace

NcclCommunicator& test_nccl() {
  if (!shared) shared = std::make_unique<Shared>();
  return shared->nccl;
}

void run_on_ranks(const std::function<void(Communicator&)>& body) {
  NcclCommunicator& communicator = test_nccl();
  body(communicator);
  communicator.synchronize_device();
}

torch::Device tensor_device() {
  return {torch::kCUDA, static_cast<c10::DeviceIndex>(shared->device)};
}

}  // namespace t2r::dist
