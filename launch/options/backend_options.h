#pragma once

#include <string>
#include <vector>

#include "launch/command.h"
#include "launch/options/options.h"
#include "model/config.h"

namespace t2r::launch {

/// Threads that a process takes at most; a hundred thousand would be made, and hang.
inline constexpr int64_t kMostThreads = 1024;

enum class Device { kAuto, kCpu, kCuda };

template <>
struct OptionNames<Device> {
  static constexpr std::pair<const char*, Device> kNames[] = {
      {"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}};
};

enum class Precision { kAuto, kFloat32, kBf16 };

template <>
struct OptionNames<Precision> {
  static constexpr std::pair<const char*, Precision> kNames[] = {
      {"auto", Precision::kAuto}, {"float32", Precision::kFloat32}, {"bf16", Precision::kBf16}};
};

template <>
struct OptionNames<model::Recompute> {
  static constexpr std::pair<const char*, model::Recompute> kNames[] = {
      {"none", model::Recompute::kNothing},
      {"mlps", model::Recompute::kMlps},
      {"all", model::Recompute::kAll}};
};

/// The options that say what a command computes on.
struct BackendOptions {
  Device device = Device::kAuto;
  Precision precision = Precision::kAuto;
  int64_t threads = 0;  ///< per rank; 0: as many as its share and the step are worth
  bool deterministic = false;
  bool cuda_graph = true;
  model::Recompute recompute = model::Recompute::kNothing;
  int64_t bucket_mib = 25;  ///< gradients that ranks sum at once, MiB

  /// @param trains  with the options that only training has
  void bind(OptionSet& options, bool trains);

  /// Adds the option of commands that repeat a step; training has it already.
  void bind_cuda_graph(OptionSet& options);

  /// Replaces auto: cuda where this machine has a GPU that CUDA_VISIBLE_DEVICES does not hide, and
  /// this build CUDA; bf16 on a GPU. Then, if
  /// that asks for a GPU and this program is not t2r_gpu, becomes it and does not return. Call it
  /// before MPI starts. Local.
  /// @throws ConfigError  if --device cuda is given to a build without CUDA, or precision does not
  ///                      fit the device
  void resolve(const Invocation& invocation);
};

/// Becomes `program` of this program's folder, with this process's arguments from `first` on.
/// Local.
/// @throws ConfigError  if there is none: `what` needs a build with CUDA
[[noreturn]] void become_gpu_program(const std::string& program,
                                     const std::vector<std::string>& arguments,
                                     const std::string& what);

/// Whether this program is t2r_gpu, which alone loads CUDA. Local.
bool has_gpu_backend();

}  // namespace t2r::launch
