#include "dist/nccl/gpu_device.h"

#include <cuda_runtime_api.h>

#include <array>
#include <cstdio>
#include <sstream>

#include "base/error.h"
#include "dist/nccl/cuda_event.h"

namespace t2r::dist {
namespace {

std::string uuid_of(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  std::array<char, 3> digits{};
  for (const char byte : uuid.bytes) {
    std::snprintf(digits.data(), digits.size(), "%02x", static_cast<unsigned char>(byte));
    text += digits.data();
  }
  return text;
}

cudaDeviceProp properties_of(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return properties;
}

// One text per rank for all_gather: what CUDA says on the first line, then one id a line.
std::string describe_visible_gpus() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();  // the error is reported here, not by whatever call comes next
    return cudaGetErrorString(code);
  }
  std::string text;
  try {
    for (int device = 0; device < count; ++device)
      text += "\n" + uuid_of(properties_of(device).uuid);
  } catch (const Error& error) {
    return error.what();
  }
  return text;
}

VisibleGpus parse_visible_gpus(const std::string& host, const std::string& text) {
  VisibleGpus gpus{.host = host, .ids = {}, .why_none = {}};
  std::istringstream lines(text);
  std::getline(lines, gpus.why_none);
  for (std::string id; std::getline(lines, id);) gpus.ids.push_back(id);
  return gpus;
}

}  // namespace

int choose_device(const World& world, Communicator& host) {
  const std::vector<std::string> texts = host.all_gather(describe_visible_gpus());
  std::vector<VisibleGpus> gpus_of_rank;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    gpus_of_rank.push_back(parse_visible_gpus(world.hosts().at(rank), texts[rank]));
  }
  return assign_gpus(gpus_of_rank).at(static_cast<size_t>(world.rank()));
}

UsedGpu use_gpu(int device, const std::string& host) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || device < 0 || device >= count) {
    cudaGetLastError();
    throw ConfigError(concat("there is no GPU ",
                             device,
                             " on host ",
                             host,
                             ": this process sees ",
                             count,
                             code == cudaSuccess ? "" : concat(" (", cudaGetErrorString(code), ")"),
                             "; see nvidia-smi and CUDA_VISIBLE_DEVICES"));
  }
  check_cuda(cudaSetDevice(device), "cudaSetDevice");
  std::array<char, 32> bus_id{};
  check_cuda(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), device), "cudaDeviceGetPCIBusId");
  return {.host = host,
          .device = device,
          .id = uuid_of(properties_of(device).uuid),
          .bus_id = bus_id.data()};
}

}  // namespace t2r::dist
