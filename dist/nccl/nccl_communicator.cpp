#include "dist/nccl/nccl_communicator.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <exception>
#include <sstream>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "dist/agreement.h"
#include "dist/mpi_communicator.h"
#include "dist/nccl/cuda_event.h"
#include "dist/nccl/gpu_device.h"
#include "dist/nccl/nccl_handle.h"
#include "dist/world.h"

namespace t2r::dist {
namespace {

using Clock = std::chrono::steady_clock;
using c10::cuda::CUDAStream;

constexpr std::chrono::seconds kClosePatience{30};

ncclDataType_t nccl_type(torch::ScalarType type) {
  switch (type) {
    case torch::kFloat32:
      return ncclFloat32;
    case torch::kFloat64:
      return ncclFloat64;
    case torch::kBFloat16:
      return ncclBfloat16;
    case torch::kInt32:
      return ncclInt32;
    case torch::kInt64:
      return ncclInt64;
    case torch::kUInt8:
      return ncclUint8;
    default:
      throw ContractError(
          concat("NcclCommunicator: dtype ",
                 torch::toString(type),
                 "; allowed are float32, float64, bfloat16, int32, int64 and uint8"));
  }
}

ncclRedOp_t nccl_op(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum:
      return ncclSum;
    case Reduction::kMax:
      return ncclMax;
    case Reduction::kMin:
      return ncclMin;
  }
  throw ContractError("NcclCommunicator: unknown reduction");
}

std::vector<NcclHandle::Part> parts_of(const torch::Tensor& flat, const ShardPlan& plan) {
  std::vector<NcclHandle::Part> parts;
  for (int rank = 0; rank < plan.num_ranks(); ++rank) {
    const Shard shard = plan.of(rank);
    parts.push_back({static_cast<char*>(flat.data_ptr()) + shard.begin * flat.element_size(),
                     static_cast<size_t>(shard.numel())});
  }
  return parts;
}

bool is_stream_capturing(const CUDAStream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

UsedGpu agree_on_gpus(const World& world, Communicator& host, int device) {
  UsedGpu own;
  const std::string& host_name = world.hosts().at(static_cast<size_t>(world.rank()));
  start_on_all_ranks<ConfigError>(
      host, "a GPU cannot be used", [&] { own = use_gpu(device, host_name); });
  std::vector<UsedGpu> gpu_of_rank;
  for (const std::string& text : host.all_gather(concat(device, " ", own.id, " ", own.bus_id))) {
    UsedGpu gpu{.host = world.hosts().at(gpu_of_rank.size()), .device = 0, .id = {}, .bus_id = {}};
    std::istringstream(text) >> gpu.device >> gpu.id >> gpu.bus_id;
    gpu_of_rank.push_back(std::move(gpu));
  }
  check_no_gpu_is_shared(gpu_of_rank);
  return own;
}

class FinishedWork : public Work {
 public:
  void wait() override {}
};

class NcclWork : public Work {
 public:
  explicit NcclWork(torch::Tensor tensor) : tensor_(std::move(tensor)) {}

  void record(const CUDAStream& stream) { done_.record(stream); }

  void wait() override {
    const c10::cuda::CUDAGuard guard(tensor_.device());
    done_.block(c10::cuda::getCurrentCUDAStream());
  }

 private:
  torch::Tensor tensor_;  // so that its memory is not given away while NCCL uses it
  CudaEvent done_;
};

}  // namespace

struct NcclCommunicator::State {
  State(World& world_, MpiCommunicator& host_, const NcclCommunicatorOptions& options_, UsedGpu gpu)
      : world(world_),
        host(host_),
        options(options_),
        nccl({.rank = world_.rank(), .host = gpu.host, .device = gpu.device, .bus_id = gpu.bus_id},
             // The first operation of a kind connects ranks, as start-up does.
             options_.wait_deadline.count() == 0
                 ? options_.wait_deadline
                 : std::max(options_.init_deadline, options_.wait_deadline)),
        stream(c10::cuda::getStreamFromPool(
            /*isHighPriority=*/true, static_cast<c10::DeviceIndex>(gpu.device))) {}

  void start();
  torch::Tensor summands() const;
  void verify_sum(const torch::Tensor& sums);
  void check_tensor(const torch::Tensor& tensor) const;
  void wait_for_current_stream(std::chrono::milliseconds patience);

  /// Runs `queue` between the current stream's past and the returned work's wait().
  template <class Queue>
  std::unique_ptr<Work> launch(const torch::Tensor& tensor, const Queue& queue);

  World& world;
  MpiCommunicator& host;
  NcclCommunicatorOptions options;
  NcclHandle nccl;
  CUDAStream stream;
  CudaEvent ready;
  int exceptions_at_start = std::uncaught_exceptions();
};

void NcclCommunicator::State::start() {
  std::string id;
  start_on_all_ranks<NcclError>(host, "NCCL did not start", [&] {
    if (world.rank() == 0) id = make_nccl_id(nccl.place());
  });
  id = host.all_gather(id).front();
  start_on_all_ranks<NcclError>(host, "NCCL did not start", [&] {
    if (options.before_init) options.before_init();
    nccl.init(id, world.size(), options.init_deadline);
  });
  // Memory first: a rank that has none must say so before the others wait for it in the sum.
  torch::Tensor sums;
  start_on_all_ranks<NcclError>(host, "NCCL's first sum failed", [&] { sums = summands(); });
  start_on_all_ranks<NcclError>(host, "NCCL's first sum failed", [&] { verify_sum(sums); });
}

torch::Tensor NcclCommunicator::State::summands() const {
  return at::tensor({int64_t{world.rank()}, int64_t{1}}, at::kLong)
      .to(torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(options.device)));
}

void NcclCommunicator::State::verify_sum(const torch::Tensor& sums) {
  const int64_t size = world.size();
  launch(sums, [&] { nccl.all_reduce(sums.data_ptr(), 2, ncclInt64, ncclSum, stream); })->wait();
  wait_for_current_stream(options.init_deadline);
  const torch::Tensor got = sums.cpu();
  const torch::Tensor expected = at::tensor({size * (size - 1) / 2, size}, at::kLong);
  if (got.equal(expected)) return;
  throw NcclError(concat("the sum of all rank numbers, and of a one from each, is ",
                         got[0].item<int64_t>(),
                         " and ",
                         got[1].item<int64_t>(),
                         " instead of ",
                         size * (size - 1) / 2,
                         " and ",
                         size,
                         " on ",
                         to_string(nccl.place()),
                         ": do not train on this machine; try NCCL_P2P_DISABLE=1 to see whether "
                         "the link between its GPUs is at fault"));
}

void NcclCommunicator::State::check_tensor(const torch::Tensor& tensor) const {
  require(tensor.is_contiguous(), "NcclCommunicator: the tensor must be contiguous");
  require(tensor.device().is_cuda() && tensor.device().index() == options.device,
          concat("NcclCommunicator: tensor on ",
                 tensor.device().str(),
                 "; allowed are cpu and cuda:",
                 options.device));
}

template <class Queue>
std::unique_ptr<Work> NcclCommunicator::State::launch(const torch::Tensor& tensor,
                                                      const Queue& queue) {
  if (tensor.numel() == 0) return std::make_unique<FinishedWork>();
  const c10::cuda::CUDAGuard guard(tensor.device());
  const CUDAStream current = c10::cuda::getCurrentCUDAStream();
  auto work = std::make_unique<NcclWork>(tensor);
  ready.record(current);
  ready.block(stream);
  // In a capture the memory belongs to the graph, and a graph keeps its order.
  if (!is_stream_capturing(current)) {
    c10::cuda::CUDACachingAllocator::recordStream(tensor.storage().data_ptr(), stream);
  }
  queue();
  work->record(stream);
  return work;
}

void NcclCommunicator::State::wait_for_current_stream(std::chrono::milliseconds patience) {
  constexpr std::chrono::microseconds kBusy{100};
  constexpr std::chrono::microseconds kPause{50};
  constexpr std::chrono::milliseconds kBetweenPolls{2};
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(options.device));
  CudaEvent event;
  event.record(c10::cuda::getCurrentCUDAStream());
  const Clock::time_point start = Clock::now();
  Clock::time_point next_poll = start + kBetweenPolls;
  while (!event.is_reached()) {
    const Clock::time_point now = Clock::now();
    if (now - start < kBusy) continue;
    if (now >= next_poll) {
      nccl.check();
      next_poll = now + kBetweenPolls;
    }
    if (patience.count() > 0 && now - start > patience) {
      throw NcclError(describe_nccl_hang("the work of the current stream",
                                         nccl.place(),
                                         std::chrono::duration<double>(patience).count()));
    }
    std::this_thread::sleep_for(kPause);
  }
}

NcclCommunicator::NcclCommunicator(World& world,
                                   MpiCommunicator& host,
                                   const NcclCommunicatorOptions& options) {
  UsedGpu gpu = agree_on_gpus(world, host, options.device);
  start_on_all_ranks<NcclError>(host, "CUDA did not start", [&] {
    state_ = std::make_unique<State>(world, host, options, std::move(gpu));
  });
  state_->start();
}

NcclCommunicator::~NcclCommunicator() {
  if (!state_->nccl.is_open()) return;
  if (std::uncaught_exceptions() > state_->exceptions_at_start) {
    state_->nccl.abort();
    return;
  }
  try {
    state_->nccl.close(kClosePatience);
  } catch (const std::exception& error) {
    log::error(concat("NCCL was not finalised: ", error.what()));
    state_->nccl.abort();
  }
}

int NcclCommunicator::rank() const {
  return state_->world.rank();
}

int NcclCommunicator::size() const {
  return state_->world.size();
}

void NcclCommunicator::all_reduce(torch::Tensor tensor, Reduction reduction) {
  all_reduce_async(std::move(tensor), reduction)->wait();
}

std::unique_ptr<Work> NcclCommunicator::all_reduce_async(torch::Tensor tensor,
                                                         Reduction reduction) {
  require(tensor.defined(), "NcclCommunicator: the tensor is undefined");
  if (tensor.device().is_cpu()) return state_->host.all_reduce_async(tensor, reduction);
  state_->check_tensor(tensor);
  const ncclDataType_t type = nccl_type(tensor.scalar_type());
  const ncclRedOp_t op = nccl_op(reduction);
  return state_->launch(tensor, [&] {
    state_->nccl.all_reduce(
        tensor.data_ptr(), static_cast<size_t>(tensor.numel()), type, op, state_->stream);
  });
}

void NcclCommunicator::broadcast(torch::Tensor tensor, int root) {
  require(tensor.defined(), "NcclCommunicator: the tensor is undefined");
  if (tensor.device().is_cpu()) return state_->host.broadcast(tensor, root);
  state_->check_tensor(tensor);
  require(root >= 0 && root < size(),
          concat("broadcast: root ", root, "; allowed 0..", size() - 1));
  const ncclDataType_t type = nccl_type(tensor.scalar_type());
  const auto queue = [&] {
    state_->nccl.broadcast(
        tensor.data_ptr(), static_cast<size_t>(tensor.numel()), type, root, state_->stream);
  };
  state_->launch(tensor, queue)->wait();
}

// A reduction a shard in one group, since shards may differ in size by one.
void NcclCommunicator::reduce_scatter(torch::Tensor flat, const ShardPlan& plan) {
  require(flat.defined(), "NcclCommunicator: the tensor is undefined");
  if (flat.device().is_cpu()) return state_->host.reduce_scatter(flat, plan);
  state_->check_tensor(flat);
  plan.check(flat, size());
  const ncclDataType_t type = nccl_type(flat.scalar_type());
  const auto queue = [&] {
    state_->nccl.reduce_scatter(parts_of(flat, plan), type, state_->stream);
  };
  state_->launch(flat, queue)->wait();
}

void NcclCommunicator::all_gather(torch::Tensor flat, const ShardPlan& plan) {
  require(flat.defined(), "NcclCommunicator: the tensor is undefined");
  if (flat.device().is_cpu()) return state_->host.all_gather(flat, plan);
  state_->check_tensor(flat);
  plan.check(flat, size());
  const ncclDataType_t type = nccl_type(flat.scalar_type());
  const auto queue = [&] { state_->nccl.all_gather(parts_of(flat, plan), type, state_->stream); };
  state_->launch(flat, queue)->wait();
}

std::vector<std::string> NcclCommunicator::all_gather(const std::string& text) {
  return state_->host.all_gather(text);
}

void NcclCommunicator::barrier() {
  state_->host.barrier();
}

void NcclCommunicator::synchronize_device() {
  require(!is_capturing(), "synchronize_device: not while a CUDA graph is captured");
  try {
    state_->wait_for_current_stream(state_->options.wait_deadline);
  } catch (const NcclError&) {
    // Kernels that wait for a peer end only so; until then nothing on the device can be freed.
    state_->nccl.abort();
    throw;
  }
}

bool NcclCommunicator::is_capturing() const {
  return is_stream_capturing(
      c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(state_->options.device)));
}

void NcclCommunicator::abort(const std::string& reason, int exit_code) {
  state_->nccl.abort();
  state_->world.abort(reason, exit_code);
}

std::string NcclCommunicator::version() {
  int code = 0;
  if (ncclGetVersion(&code) != ncclSuccess) return "unknown";
  return concat(code / 10000, ".", code / 100 % 100, ".", code % 100);
}

}  // namespace t2r::dist
