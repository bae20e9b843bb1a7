#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/batch.h"
#include "dist/communicator.h"
#include "dist/mpi_communicator.h"
#include "dist/world.h"
#include "launch/options/backend_options.h"
#include "launch/train/training_step.h"
#include "model/config.h"
#include "model/parameters.h"
#include "model/search/decode_loop.h"

namespace t2r::launch {

/// What a device spent on one kind of kernel or copy.
struct KernelTime {
  std::string name;
  int64_t count = 0;
  double seconds = 0.0;
};

/// What a command computes on: this host's processors, or one GPU per rank.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual model::Placement placement() const = 0;
  virtual dist::Communicator& communicator() = 0;

  /// For people, e.g. "NVIDIA H200, bf16, NCCL 2.28.9".
  virtual std::string description() const = 0;

  /// Memory that batches are read into.
  virtual data::BatchAllocator batch_allocator() const { return &data::allocate_pageable; }

  virtual std::unique_ptr<TrainingStep> make_step(const StepParts& parts) = 0;

  /// Most bytes that tensors have taken on the device since the last reset, 0 where unknown.
  virtual int64_t peak_memory_bytes() const { return 0; }
  virtual void reset_peak_memory() {}

  /// Runs `work` and lists the device's kernels in it, the longest first; `file` gets the trace.
  /// Local.
  /// @throws ConfigError  on a CPU
  virtual std::vector<KernelTime> trace(const std::filesystem::path& file,
                                        const std::function<void()>& work);

  /// Waits for the device to finish what it was given.
  virtual void synchronize() {}
};

/// The backend that resolved options ask for. Collective: every rank, same order.
/// @throws ConfigError  on every rank: no GPU, fewer GPUs than ranks on a host, two ranks on one
/// GPU
std::unique_ptr<Backend> make_backend(const BackendOptions& options,
                                      dist::World& world,
                                      dist::MpiCommunicator& communicator);

/// On GPU `device`, in the precision that resolved options ask for. Local.
model::Placement gpu_placement(const BackendOptions& options, int device);

/// Where a command without ranks computes: this host's processors, or the first GPU. Local.
/// @throws ConfigError  if there is no GPU
model::Placement single_placement(const BackendOptions& options);

/// Refuses a model whose linear attention the GPU's kernels do not have. Local.
/// @throws ConfigError  naming the head size or the number of features, and what is allowed
void check_model_fits(const model::DecoderConfig& config, const model::Placement& placement);

/// The loop that generates where the model is; with options.cuda_graph a GPU captures a step once.
/// Local. The model outlives it.
std::unique_ptr<model::DecodeLoop> make_decode_loop(const model::DecoderLM& model,
                                                    const BackendOptions& options);

/// How t2r_gpu makes its backend; set once, before main's work.
using GpuBackendFactory = std::unique_ptr<Backend> (*)(const BackendOptions&,
                                                       dist::World&,
                                                       dist::MpiCommunicator&);
bool register_gpu_backend(GpuBackendFactory factory);

/// Likewise its loop of generation.
using GpuDecodeLoopFactory = std::unique_ptr<model::DecodeLoop> (*)(const model::DecoderLM&,
                                                                    bool uses_graph);
bool register_gpu_decode_loop(GpuDecodeLoopFactory factory);

}  // namespace t2r::launch
