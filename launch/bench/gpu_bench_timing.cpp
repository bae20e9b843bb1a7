#include "launch/bench/gpu_bench_timing.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

namespace t2r::launch {

using at::Tensor;

double microseconds(const std::function<void()>& body) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  std::vector<double> times;
  for (int i = 0; i < 17; ++i) {
    cudaEventRecord(begin, stream);
    for (int run = 0; run < 5; ++run) body();
    cudaEventRecord(end, stream);
    cudaEventSynchronize(end);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    if (i >= 2) times.push_back(milliseconds * 1e3 / 5);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(
      times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

double replay_microseconds(int sets, const std::function<std::vector<Tensor>(int)>& call) {
  const auto stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard guard(stream);
  for (int i = 0; i < sets; ++i) call(i);
  stream.synchronize();
  at::cuda::CUDAGraph graph;
  std::vector<std::vector<Tensor>> kept;
  graph.capture_begin();
  for (int i = 0; i < sets; ++i) kept.push_back(call(i));
  graph.capture_end();
  return microseconds([&] { graph.replay(); }) / sets;
}

double attention_microseconds(const Attention& attention,
                              std::vector<std::vector<Tensor>> inputs,
                              bool backward) {
  std::vector<Tensor> gradients;
  for (std::vector<Tensor>& set : inputs) {
    gradients.push_back(at::randn_like(set[0]));  // o has the queries' shape
    for (Tensor& tensor : set) tensor.requires_grad_(backward);
  }
  return replay_microseconds(static_cast<int>(inputs.size()), [&](int i) -> std::vector<Tensor> {
    const c10::AutoGradMode mode(backward);
    const Tensor o = attention(inputs[i]);
    if (!backward) return {o};
    return torch::autograd::grad({o}, inputs[i], {gradients[i]}, std::nullopt, false, true);
  });
}

int sets_beyond_cache(double bytes) {
  return std::clamp(
      static_cast<int>(3.0 * at::cuda::getCurrentDeviceProperties()->l2CacheSize / bytes) + 1,
      2,
      64);
}

Ceilings measure_ceilings() {
  const auto options = at::TensorOptions(at::kCUDA);
  const Tensor from = at::empty({int64_t{1} << 28}, options.dtype(at::kFloat)).normal_(),
               to = at::empty_like(from);
  const double copy = microseconds([&] { to.copy_(from); });
  const Tensor a = at::randn({8192, 8192}, options.dtype(at::kBFloat16)),
               b = at::randn({8192, 8192}, options.dtype(at::kBFloat16));
  Tensor c = at::empty_like(a);
  const double product = microseconds([&] { at::mm_out(c, a, b); });
  return {2.0 * 4 * static_cast<double>(from.numel()) / copy, 2.0 * 8192 * 8192 * 8192 / product};
}

}  // namespace t2r::launch
