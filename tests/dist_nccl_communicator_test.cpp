// What is particular to GPUs: streams, graphs, start-up. At any number of ranks with a GPU each;
// the NcclRefusal tests also where ranks outnumber the GPUs.

#include "dist/nccl/nccl_communicator.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "dist/gradient_reducer.h"
#include "dist/mpi_communicator.h"
#include "dist/nccl/gpu_device.h"
#include "dist/nccl/nccl_error.h"
#include "tests/dist_nccl_ranks.h"
#include "tests/dist_ranks.h"
#include "tests/mpi_main.h"

namespace t2r::dist {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using Clock = std::chrono::steady_clock;

const std::vector<int64_t> kSizes = {0, 1, 7, 1000, 300007};

// At most 16 a rank: exact in bfloat16 up to 16 ranks' sum of 256.
torch::Tensor small_integers(int64_t numel, int rank, torch::ScalarType type) {
  return on_device((torch::arange(numel, torch::kInt64) % 13 + rank).to(type));
}

c10::cuda::CUDAStream side_stream() {
  return c10::cuda::getStreamFromPool(/*isHighPriority=*/false, tensor_device().index());
}

/// Keeps the current stream busy for some milliseconds, so that who does not wait reads too early.
void delay_current_stream() {
  torch::Tensor matrix = torch::ones({4096, 4096}, torch::TensorOptions(tensor_device()));
  for (int i = 0; i < 20; ++i) matrix = matrix.matmul(matrix) * 1e-4;
}

/// Thread-local: autograd's and NCCL's threads may allocate while this thread captures.
void begin_capture(at::cuda::CUDAGraph& graph) {
  graph.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
}

TEST(NcclCommunicator, ReducesExactlyWhenInputsAreSmallIntegers) {
  run_on_ranks([](Communicator& communicator) {
    const int size = communicator.size();
    for (const auto type : {torch::kFloat32,
                            torch::kFloat64,
                            torch::kBFloat16,
                            torch::kInt32,
                            torch::kInt64,
                            torch::kUInt8}) {
      for (const int64_t numel : kSizes) {
        const torch::Tensor own = small_integers(numel, communicator.rank(), type);
        const torch::Tensor sum = own.clone();
        const torch::Tensor largest = own.clone();
        const torch::Tensor smallest = own.clone();
        communicator.all_reduce(sum, Reduction::kSum);
        communicator.all_reduce(largest, Reduction::kMax);
        communicator.all_reduce(smallest, Reduction::kMin);
        const torch::Tensor base = small_integers(numel, 0, type);
        const std::string what = concat(torch::toString(type), " x ", numel);
        EXPECT_TRUE(sum.equal(base * size + size * (size - 1) / 2)) << what;
        EXPECT_TRUE(largest.equal(base + (size - 1))) << what;
        EXPECT_TRUE(smallest.equal(base)) << what;
      }
    }
  });
}

TEST(NcclCommunicator, CopiesRootsTensorWhenBroadcastingAnyDtype) {
  run_on_ranks([](Communicator& communicator) {
    const int root = communicator.size() - 1;
    for (const auto type : {torch::kFloat32,
                            torch::kFloat64,
                            torch::kBFloat16,
                            torch::kInt32,
                            torch::kInt64,
                            torch::kUInt8}) {
      for (const int64_t numel : kSizes) {
        const torch::Tensor tensor = small_integers(numel, communicator.rank(), type);
        communicator.broadcast(tensor, root);
        EXPECT_TRUE(tensor.equal(small_integers(numel, root, type))) << torch::toString(type);
      }
    }
  });
}

TEST(NcclCommunicator, ServesCpuTensorsThroughMpi) {
  run_on_ranks([](Communicator& communicator) {
    const int size = communicator.size();
    const torch::Tensor tensor = torch::full({1000}, communicator.rank() + 1.0f);
    communicator.all_reduce(tensor, Reduction::kSum);
    EXPECT_TRUE(tensor.equal(torch::full({1000}, size * (size + 1) / 2.0f)));
    communicator.broadcast(tensor, 0);
    EXPECT_EQ(communicator.all_gather("x").size(), static_cast<size_t>(size));
  });
}

TEST(NcclCommunicator, RefusesWhenDtypeIsNotServed) {
  run_on_ranks([](Communicator& communicator) {
    for (const auto type : {torch::kHalf, torch::kBool}) {
      const torch::Tensor tensor = on_device(torch::zeros({2}, type));
      EXPECT_THROW(communicator.all_reduce(tensor, Reduction::kSum), ContractError);
      EXPECT_THROW(communicator.broadcast(tensor, 0), ContractError);
    }
  });
}

TEST(NcclCommunicator, WaitsForStreamsWhenHostDoesNot) {
  run_on_ranks([](Communicator& communicator) {
    const int size = communicator.size();
    const torch::Tensor tensor = on_device(torch::zeros({1 << 20}));
    const c10::cuda::CUDAStream before = side_stream();
    const c10::cuda::CUDAStream after = side_stream();
    ASSERT_NE(before, after);
    cudaDeviceSynchronize();
    std::unique_ptr<Work> work;
    {
      const c10::cuda::CUDAStreamGuard guard(before);
      delay_current_stream();
      tensor.fill_(communicator.rank() + 1);
      work = communicator.all_reduce_async(tensor, Reduction::kSum);
    }
    torch::Tensor seen;
    {
      const c10::cuda::CUDAStreamGuard guard(after);
      work->wait();
      work->wait();  // a second wait is allowed and changes nothing
      seen = tensor * 1;
      communicator.synchronize_device();
      EXPECT_TRUE(seen.equal(torch::full_like(seen, size * (size + 1) / 2)));
    }
    before.synchronize();
  });
}

TEST(NcclCommunicator, GivesTheSameAsEagerWhenReplayedFromAGraph) {
  run_on_ranks([](Communicator& communicator) {
    const c10::cuda::CUDAStreamGuard guard(side_stream());
    const torch::Tensor input = on_device(torch::zeros({100003}));
    const auto step = [&] {
      const torch::Tensor sum = input * 2;
      const auto work = communicator.all_reduce_async(sum, Reduction::kSum);
      const torch::Tensor beside = input + 1;  // may run at the same time
      const torch::Tensor copy = input * 1;
      communicator.broadcast(copy, 0);
      work->wait();
      return torch::cat({sum, beside, copy});
    };
    step();  // NCCL connects
    EXPECT_FALSE(communicator.is_capturing());
    at::cuda::CUDAGraph graph;
    begin_capture(graph);
    EXPECT_TRUE(communicator.is_capturing());
    EXPECT_THROW(communicator.synchronize_device(), ContractError);
    const torch::Tensor output = step();
    graph.capture_end();
    for (int repeat = 0; repeat < 3; ++repeat) {
      input.copy_(small_integers(input.numel(), communicator.rank() + repeat, torch::kFloat32));
      graph.replay();
      const torch::Tensor replayed = output.clone();
      EXPECT_TRUE(replayed.equal(step())) << "repeat " << repeat;  // eager between replays
    }
  });
}

/// Two layers whose gradients are integers, in an arena of `type`: below 256 after two micro-steps
/// on four ranks, so that every sum is exact in bfloat16.
struct Layers {
  explicit Layers(torch::ScalarType type)
      : first(on_device((torch::arange(12 * 32) % 3 - 1).to(type)).reshape({12, 32})),
        second(on_device((torch::arange(32 * 8) % 3 - 1).to(type)).reshape({32, 8})),
        arena(on_device(torch::full({32 * 8 + 12 * 32}, 99).to(type))) {
    slices = {{"second", second, 0, 32 * 8, 0}, {"first", first, 32 * 8, 12 * 32, 1}};
    for (GradientSlice& slice : slices) {
      slice.parameter.requires_grad_();
      slice.parameter.mutable_grad() =
          arena.narrow(0, slice.offset, slice.numel).view(slice.parameter.sizes());
    }
  }
  torch::Tensor loss(const torch::Tensor& input) const {
    return input.matmul(first).matmul(second).sum();
  }
  GradientReducerOptions options() const { return {.first_cap_bytes = 4, .cap_bytes = 512}; }

  torch::Tensor first, second, arena;
  std::vector<GradientSlice> slices;
};

torch::Tensor input_of(int seed, torch::ScalarType type) {
  return on_device(((torch::arange(2 * 12) * (seed + 1)) % 3 - 1).to(type).reshape({2, 12}));
}

torch::Tensor gradient_of(const std::vector<int>& seeds, torch::ScalarType type) {
  Layers layers(type);
  layers.arena.zero_();
  for (const int seed : seeds) layers.loss(input_of(seed, type)).backward();
  return layers.arena;
}

std::vector<int> seeds_of_ranks(int size, int step) {
  std::vector<int> seeds;
  for (int rank = 0; rank < size; ++rank) seeds.push_back(rank + 10 * step);
  return seeds;
}

TEST(NcclGradientReducer, SumsOverRanksWhenArenaIsFloatOrBfloat16) {
  run_on_ranks([](Communicator& communicator) {
    for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
      Layers layers(type);
      GradientReducer reducer(layers.slices, layers.arena, communicator, layers.options());
      ASSERT_GT(reducer.buckets().size(), 2u);
      ReductionReport report;
      for (int step = 0; step < 3; ++step) {
        reducer.begin_step();
        reducer.begin_micro_step(true);
        layers.loss(input_of(communicator.rank() + 10 * step, type)).backward();
        report = reducer.finish_step();
        EXPECT_EQ(report.num_launched_in_backward, static_cast<int64_t>(reducer.buckets().size()));
        const auto seeds = seeds_of_ranks(communicator.size(), step);
        EXPECT_TRUE(layers.arena.equal(gradient_of(seeds, type)))
            << torch::toString(type) << ", step " << step;
      }
      EXPECT_GT(report.exposed_seconds, 0.0);  // of a step before the last
      EXPECT_LT(report.exposed_seconds, 60.0);
    }
  });
}

TEST(NcclGradientReducer, GivesTheSameAsEagerWhenTheStepIsReplayed) {
  run_on_ranks([](Communicator& communicator) {
    const c10::cuda::CUDAStreamGuard guard(side_stream());
    for (const auto type : {torch::kFloat32, torch::kBFloat16}) {
      Layers layers(type);
      GradientReducer reducer(layers.slices, layers.arena, communicator, layers.options());
      const torch::Tensor input = input_of(0, type);
      const auto step = [&] {
        reducer.begin_step();
        for (const bool is_last : {false, true}) {
          reducer.begin_micro_step(is_last);
          layers.loss(input).backward();
        }
        return reducer.finish_step();
      };
      for (int warm_up = 0; warm_up < 2; ++warm_up) step();
      communicator.synchronize_device();
      at::cuda::CUDAGraph graph;
      begin_capture(graph);
      const ReductionReport report = step();
      graph.capture_end();
      EXPECT_EQ(report.num_missing_gradients, 0);
      for (int repeat = 0; repeat < 3; ++repeat) {
        input.copy_(input_of(communicator.rank() + 10 * repeat, type));
        graph.replay();
        const torch::Tensor replayed = layers.arena.clone();
        const auto seeds = seeds_of_ranks(communicator.size(), repeat);
        EXPECT_TRUE(replayed.equal(gradient_of(seeds, type) * 2))
            << torch::toString(type) << ", repeat " << repeat;
        step();  // eager between replays
        EXPECT_TRUE(layers.arena.equal(replayed)) << torch::toString(type);
      }
    }
  });
}

TEST(NcclGradientReducer, NamesTheParameterWhenForwardRanOnAnotherStream) {
  run_on_ranks([](Communicator& communicator) {
    Layers layers(torch::kFloat32);
    GradientReducer reducer(layers.slices, layers.arena, communicator, layers.options());
    reducer.begin_step();
    reducer.begin_micro_step(false);
    const c10::cuda::CUDAStreamGuard guard(side_stream());
    cudaDeviceSynchronize();
    const torch::Tensor loss = layers.loss(input_of(0, torch::kFloat32));
    try {
      loss.backward();
      FAIL() << "nothing was thrown";
    } catch (const ContractError& error) {
      EXPECT_THAT(error.what(), HasSubstr("was added on another stream"));
    }
  });
}

/// One communicator of a test's own, and what its start or `body` throws.
template <class ErrorType>
std::string message_of(const NcclCommunicatorOptions& options,
                       const std::function<void(NcclCommunicator&)>& body = {}) {
  MpiCommunicator host(test_world());
  std::string message = "nothing was thrown";
  try {
    NcclCommunicator communicator(test_world(), host, options);
    if (body) body(communicator);
  } catch (const ErrorType& error) {
    message = error.what();
  }
  const auto messages = host.all_gather(body ? "" : message);
  EXPECT_EQ(std::set<std::string>(messages.begin(), messages.end()).size(), 1u)
      << "the ranks say different things";
  return message;
}

int own_device() {
  test_nccl();
  return tensor_device().index();
}

TEST(NcclStartUp, LoadsOneNcclWhoseVersionIsKnown) {
  EXPECT_THAT(NcclCommunicator::version(), StartsWith("2."));
  test_nccl();
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> libraries;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/libnccl.so") != std::string::npos)
      libraries.insert(line.substr(line.find('/')));
  }
  EXPECT_EQ(libraries.size(), 1u);
}

TEST(NcclStartUp, FailsOnEveryRankInTimeWhenOneThrowsBefore) {
  NcclCommunicatorOptions options{.device = own_device(), .init_deadline = std::chrono::seconds(5)};
  const int last = test_world().size() - 1;
  if (test_world().rank() == last) {
    options.before_init = [] { throw std::runtime_error("the test's own failure"); };
  }
  const auto start = Clock::now();
  const std::string message = message_of<NcclError>(options);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(20));
  EXPECT_THAT(message, HasSubstr(concat("rank ", last, ": the test's own failure")));
  if (last > 0) {
    EXPECT_THAT(message,
                AllOf(HasSubstr("ncclCommInitRankConfig on rank 0 (host"),
                      HasSubstr("did not end within 5 s"),
                      HasSubstr("NCCL_DEBUG=INFO")));
  }
}

TEST(NcclStartUp, ThrowsInTimeWhenTheDeviceHangs) {
  const NcclCommunicatorOptions options{.device = own_device(),
                                        .wait_deadline = std::chrono::milliseconds(300)};
  std::atomic<bool> is_open{false};
  const auto wait_for_gate = [](void* gate) {
    while (!*static_cast<std::atomic<bool>*>(gate)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  const auto hang = [&](NcclCommunicator& communicator) {
    communicator.all_reduce(on_device(torch::ones({5})), Reduction::kSum);
    communicator.synchronize_device();
    cudaLaunchHostFunc(c10::cuda::getCurrentCUDAStream(), wait_for_gate, &is_open);
    std::thread opens([&] {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      is_open = true;
    });
    EXPECT_THROW(communicator.synchronize_device(), NcclError);
    opens.join();
    communicator.all_reduce(on_device(torch::ones({5})), Reduction::kSum);
  };
  const std::string message = message_of<NcclError>(options, hang);
  cudaDeviceSynchronize();
  EXPECT_THAT(message, HasSubstr("NCCL was ended before, on rank"));
}

TEST(NcclRefusal, NamesRanksHostAndGpuWhenTwoShareOne) {
  if (test_world().size() == 1) return;  // one rank shares with nobody
  EXPECT_THAT(message_of<ConfigError>({.device = 0}),
              AllOf(HasSubstr("ranks 0, 1"),
                    HasSubstr("use one GPU of host " + test_world().hosts()[0] + " (device 0, "),
                    HasSubstr("GPU-")));
}

TEST(NcclRefusal, NamesTheRankWhenItsDeviceIsNotThere) {
  const int last = test_world().size() - 1;
  const int device = test_world().rank() == last ? 99 : 0;
  EXPECT_THAT(message_of<ConfigError>({.device = device}),
              HasSubstr(concat("rank ", last, ": there is no GPU 99 on host ")));
}

TEST(NcclRefusal, CountsGpusAndRanksWhenThereAreTooFew) {
  MpiCommunicator host(test_world());
  int num_gpus = 0;
  ASSERT_EQ(cudaGetDeviceCount(&num_gpus), cudaSuccess);
  const int size = test_world().size();
  if (num_gpus >= size) {
    EXPECT_EQ(choose_device(test_world(), host), test_world().local_rank());
    return;
  }
  try {
    choose_device(test_world(), host);
    FAIL() << "nothing was thrown";
  } catch (const ConfigError& error) {
    EXPECT_THAT(
        error.what(),
        HasSubstr(concat(num_gpus, num_gpus == 1 ? " GPU" : " GPUs", " but ", size, " ranks")));
  }
}

}  // namespace
}  // namespace t2r::dist
