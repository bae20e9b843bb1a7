// What t2r_gpu adds to t2r: the GPU as a backend. Linked into that program alone.
#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>

#include "base/error.h"
#include "dist/nccl/gpu_device.h"
#include "dist/nccl/nccl_communicator.h"
#include "launch/backend.h"
#include "launch/gpu/gpu_step.h"
#include "launch/gpu/gpu_trace.h"
#include "launch/gpu_memory.h"
#include "model/gpu_ops.h"
#include "model/ops/operators.h"

namespace t2r::launch {
namespace {

/// Page-locked memory, from which batches are copied without waiting.
data::BatchMemory allocate_pinned(int64_t num_elements) {
  auto memory = std::make_shared<torch::Tensor>(
      torch::empty({num_elements}, torch::TensorOptions(torch::kInt64).pinned_memory(true)));
  return {memory->data_ptr<int64_t>(), memory};
}

class GpuBackend : public Backend {
 public:
  GpuBackend(const BackendOptions& options, dist::World& world, dist::MpiCommunicator& host)
      : options_(options),
        device_(dist::choose_device(world, host)),
        communicator_(world, host, {.device = device_}) {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device_));
    at::Context& context = at::globalContext();
    // cuDNN's attention is the quickest on Hopper; LibTorch would try its own first.
    context.setSDPPriorityOrder({static_cast<int64_t>(at::SDPBackend::cudnn_attention),
                                 static_cast<int64_t>(at::SDPBackend::flash_attention),
                                 static_cast<int64_t>(at::SDPBackend::efficient_attention),
                                 static_cast<int64_t>(at::SDPBackend::math)});
    context.setDeterministicAlgorithms(options.deterministic, /*warn_only=*/false);
    // Deterministic algorithms would also fill every new tensor.
    context.setDeterministicFillUninitializedMemory(false);
  }

  model::Placement placement() const override { return gpu_placement(options_, device_); }

  dist::Communicator& communicator() override { return communicator_; }

  std::string description() const override {
    return concat(at::cuda::getCurrentDeviceProperties()->name,
                  ", ",
                  name_of(options_.precision),
                  options_.deterministic ? ", deterministic" : "",
                  options_.cuda_graph ? "" : ", no CUDA graph",
                  ", NCCL ",
                  dist::NcclCommunicator::version());
  }

  data::BatchAllocator batch_allocator() const override { return &allocate_pinned; }

  std::unique_ptr<TrainingStep> make_step(const StepParts& parts) override {
    return make_gpu_step(parts, options_.cuda_graph);
  }

  int64_t peak_memory_bytes() const override { return launch::peak_memory_bytes(gpu()); }

  void reset_peak_memory() override { launch::reset_peak_memory(gpu()); }

  std::vector<KernelTime> trace(const std::filesystem::path& file,
                                const std::function<void()>& work) override {
    return trace_gpu(file, work);
  }

  void synchronize() override { communicator_.synchronize_device(); }

 private:
  c10::Device gpu() const {
    return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_)};
  }

  BackendOptions options_;
  int device_;
  dist::NcclCommunicator communicator_;
};

std::unique_ptr<Backend> make_gpu_backend(const BackendOptions& options,
                                          dist::World& world,
                                          dist::MpiCommunicator& host) {
  return std::make_unique<GpuBackend>(options, world, host);
}

[[maybe_unused]] const bool is_registered =
    model::gpu::register_operators(ops::operators()) && register_gpu_backend(&make_gpu_backend);

}  // namespace
}  // namespace t2r::launch
