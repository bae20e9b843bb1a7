#include <ATen/Context.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "launch/backend.h"
#include "launch/bench/bench_model.h"
#include "launch/cli/idle_options.h"
#include "launch/command.h"
#include "launch/gpu_memory.h"
#include "launch/options/option_groups.h"
#include "launch/options/options.h"
#include "launch/threads.h"

namespace t2r::launch {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  BenchModel model;
  std::vector<int64_t> lengths = {1024, 8192, 65536};
  int64_t batch_size = 1;
  TimedSteps timing{.timed = 64, .untimed = 16};
  model::SamplingOptions sampling;
  bool json = false;
  BackendOptions backend;

  void bind(OptionSet& options) {
    model.bind(options);
    constexpr int64_t kMost = int64_t{1} << 40;  // their sums and products with sizes fit
    options.add("lengths", lengths, "tokens that each sequence has seen before the timed ones")
        .range(1, kMost);
    bind_sequences_at_once(options, batch_size, "sequences of each step");
    timing.bind(options);
    bind_sampling(options, sampling);
    options.add("json", json, "print one JSON object a length");
    backend.bind(options, /*trains=*/false);
    backend.bind_cuda_graph(options);
  }

  void validate() const {
    if (lengths.empty()) throw ConfigError(not_allowed("lengths", "[]", "one or more"));
  }

  /// Positions that a run at `length` passes.
  int64_t positions(int64_t length) const { return length + timing.untimed + timing.timed; }
};

struct Measurement {
  int64_t length = 0;
  double seconds = 0.0;  ///< of a step: the median of groups of steps
  int64_t state_bytes = 0, peak_bytes = 0;
};

/// A state of random numbers, as tokens would leave it in size, and steps from there.
Measurement measure(const model::DecoderLM& model, const BenchOptions& options, int64_t length) {
  constexpr int64_t kGroup = 8;  // steps that a GPU is given at a time
  const bool on_gpu = model.device().is_cuda();
  if (on_gpu) {
    c10::getDeviceAllocator(model.device().type())->emptyCache();
    reset_peak_memory(model.device());
  }
  const auto loop = make_decode_loop(model, options.backend);
  {
    const torch::InferenceMode inference;
    loop->resume(model.random_state(options.batch_size, length, options.positions(length)),
                 options.batch_size);
  }
  loop->start(torch::zeros({options.batch_size}, torch::kInt64),
              options.sampling,
              options.timing.untimed + options.timing.timed);
  for (int64_t i = 0; i < options.timing.untimed; ++i) loop->next();
  std::vector<double> seconds;
  for (int64_t begin = 0; begin < options.timing.timed; begin += kGroup) {
    const int64_t count = std::min(kGroup, options.timing.timed - begin);
    const Clock::time_point start = Clock::now();
    for (int64_t i = 0; i < count; ++i) loop->next();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() /
                      static_cast<double>(count));
  }
  std::sort(seconds.begin(), seconds.end());
  return {.length = length,
          .seconds = seconds[seconds.size() / 2],
          .state_bytes = loop->state_bytes(),
          .peak_bytes = on_gpu ? peak_memory_bytes(model.device()) : 0};
}

void print(const BenchOptions& options, const Measurement& m) {
  const double rate = static_cast<double>(options.batch_size) / m.seconds;
  if (options.json) {
    std::cout << nlohmann::ordered_json{{"length", m.length},
                                        {"batch_size", options.batch_size},
                                        {"seconds_median", m.seconds},
                                        {"tokens_per_second", rate},
                                        {"state_bytes", m.state_bytes},
                                        {"peak_memory_bytes", m.peak_bytes}}
                     .dump()
              << std::endl;
    return;
  }
  char line[200];
  std::snprintf(line,
                sizeof(line),
                "%10ld %12.1f %12.0f %14ld %14ld",
                m.length,
                1e6 * m.seconds,
                rate,
                m.state_bytes,
                m.peak_bytes);
  std::cout << line << std::endl;
}

void print_failure(const BenchOptions& options, int64_t length, const std::string& reason) {
  if (options.json) {
    std::cout << nlohmann::ordered_json{{"length", length},
                                        {"batch_size", options.batch_size},
                                        {"error", reason}}
                     .dump()
              << std::endl;
  } else {
    std::cout << std::string(10 - std::min<size_t>(10, std::to_string(length).size()), ' ')
              << length << " " << reason << std::endl;
  }
}

}  // namespace

int run_bench_generate(const Invocation& invocation) {
  BenchOptions values;
  OptionSet options("bench generate",
                    "Time steps of generation behind contexts of given lengths, whose states are "
                    "random numbers; by default a GPT-2-124M with T2R attention.");
  values.bind(options);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  values.backend.resolve(invocation);
  values.validate();
  values.model.say_idle(options);
  say_idle_backend_options(options, values.backend, /*num_ranks=*/1);
  say_idle_sampling(options, values.sampling);

  const model::Placement placement = single_placement(values.backend);
  const int64_t longest = *std::max_element(values.lengths.begin(), values.lengths.end());
  const std::unique_ptr<model::DecoderLM> model = values.model.make(values.positions(longest));
  check_model_fits(model->config(), placement);
  for (const int64_t length : values.lengths) model->check_positions(values.positions(length));
  model->parameters().move_to(placement);
  model->prepare_generation();
  set_threads(values.backend.threads > 0
                  ? values.backend.threads
                  : threads_for(work_of_step(*model, values.batch_size), usable_processors()));
  if (!values.json) {
    std::cout << model->parameters().num_scalars() << " parameters, " << values.batch_size
              << " sequences at once\n"
              << "    tokens      us/step     tokens/s    state bytes     peak bytes" << std::endl;
  }
  for (const int64_t length : values.lengths) {
    const auto too_long = [&] { print_failure(values, length, "out of GPU memory"); };
    try {
      print(values, measure(*model, values, length));
    } catch (const GpuMemoryError&) {  // of the loop
      too_long();
    } catch (const c10::OutOfMemoryError&) {  // of the state
      too_long();
    }
  }
  return 0;
}

}  // namespace t2r::launch
