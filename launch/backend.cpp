#include "launch/backend.h"

#include <ATen/Context.h>

#include "base/error.h"
#include "base/text.h"
#include "model/kernels/cpu/dispatch.h"

namespace t2r::launch {
namespace {

GpuBackendFactory gpu_backend_factory = nullptr;
GpuDecodeLoopFactory gpu_decode_loop_factory = nullptr;

class HostBackend : public Backend {
 public:
  explicit HostBackend(dist::Communicator& communicator) : communicator_(communicator) {}

  model::Placement placement() const override { return {}; }
  dist::Communicator& communicator() override { return communicator_; }
  std::string description() const override {
    return concat("CPU kernels ", model::kernels::cpu_kernels().name, ", float32");
  }
  std::unique_ptr<TrainingStep> make_step(const StepParts& parts) override {
    return make_host_step(parts);
  }

 private:
  dist::Communicator& communicator_;
};

}  // namespace

std::vector<KernelTime> Backend::trace(const std::filesystem::path&, const std::function<void()>&) {
  throw ConfigError("a trace lists a GPU's kernels: it needs --device cuda");
}

std::unique_ptr<Backend> make_backend(const BackendOptions& options,
                                      dist::World& world,
                                      dist::MpiCommunicator& communicator) {
  if (options.device == Device::kCpu) return std::make_unique<HostBackend>(communicator);
  require(gpu_backend_factory != nullptr, "a GPU backend is asked of a program without one");
  return gpu_backend_factory(options, world, communicator);
}

bool register_gpu_backend(GpuBackendFactory factory) {
  gpu_backend_factory = factory;
  return true;
}

bool register_gpu_decode_loop(GpuDecodeLoopFactory factory) {
  gpu_decode_loop_factory = factory;
  return true;
}

std::unique_ptr<model::DecodeLoop> make_decode_loop(const model::DecoderLM& model,
                                                    const BackendOptions& options) {
  if (!model.device().is_cuda()) return model::make_decode_loop(model);
  require(gpu_decode_loop_factory != nullptr, "a loop on a GPU is asked of a program without one");
  return gpu_decode_loop_factory(model, options.cuda_graph);
}

bool has_gpu_backend() {
  return gpu_backend_factory != nullptr;
}

model::Placement gpu_placement(const BackendOptions& options, int device) {
  return {torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(device)),
          options.precision == Precision::kBf16 ? torch::kBFloat16 : torch::kFloat32};
}

model::Placement single_placement(const BackendOptions& options) {
  if (options.device == Device::kCpu) return {};
  if (!at::hasCUDA()) {
    throw ConfigError(
        "no GPU was found: LibTorch sees no CUDA device or no driver; run with --device cpu");
  }
  return gpu_placement(options, 0);
}

void check_model_fits(const model::DecoderConfig& config, const model::Placement& placement) {
  if (!placement.device.is_cuda() || !config.linear.has_value()) return;
  const auto refuse = [](const char* what, int64_t value, const char* allowed) {
    throw ConfigError(concat("the model's linear attention has ",
                             not_allowed(what, std::to_string(value), allowed, "on a GPU"),
                             "; run with --device cpu"));
  };
  const int64_t head = config.head_dim, features = config.linear->feature_size;
  if (head != 32 && head != 64 && head != 128) refuse("head size", head, "32, 64, 128");
  if (features > 128) refuse("feature size", features, "1 to 128");
}

}  // namespace t2r::launch
