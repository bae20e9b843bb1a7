#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "base/text.h"
#include "launch/bench/bench_model.h"
#include "launch/cli/idle_options.h"
#include "launch/command.h"
#include "launch/options/option_groups.h"
#include "launch/options/option_value.h"
#include "launch/session.h"
#include "launch/train/training_run.h"

namespace t2r::launch {
namespace {

using torch::Tensor;
using Clock = std::chrono::steady_clock;

constexpr size_t kNumListedKernels = 40;

struct BenchOptions : BatchOptions {
  BenchModel model;
  TimedSteps timing;
  double peak_tflops = 0.0;
  std::string trace;
  bool json = false;
  BackendOptions backend;

  BenchOptions() : BatchOptions{.sequence_length = 1024, .batch_size = 64} {}

  void bind(OptionSet& options) {
    model.bind(options);
    bind_per_rank(options);
    timing.bind(options);
    options
        .add("peak-tflops",
             peak_tflops,
             "of one rank's device, for MFU; 0: the data sheet's, if known")
        .range(0.0, 1e9);
    options.add(
        "trace",
        trace,
        "on a GPU: list the kernels of a step by time, and write a trace of them to this file");
    options.add("json", json, "print one JSON object");
    backend.bind(options, /*trains=*/true);
  }

  void validate() const {
    checked_product("timed-steps x batch-size-per-rank x sequence-length",
                    {timing.timed, batch_size, sequence_length});
    if (micro_batch_size > batch_size) {
      throw ConfigError(not_allowed("micro-batch-size",
                                    std::to_string(micro_batch_size),
                                    concat("0 to batch-size-per-rank = ", batch_size)));
    }
    if (!trace.empty() && backend.device == Device::kCpu)
      throw ConfigError(not_allowed("trace", trace, "none; it lists a GPU's kernels", "on a CPU"));
  }
};

/// Dense bf16 peaks of data sheets, TFLOP/s. Source: NVIDIA's data sheets of A100, H100 and H200.
double data_sheet_tflops(const std::string& device) {
  if (device.find("H100") != std::string::npos || device.find("H200") != std::string::npos)
    return 989.0;
  if (device.find("A100") != std::string::npos) return 312.0;
  return 0.0;
}

/// Columns of an attention layer's products per head column: half of the context twice for softmax;
/// for linear attention update and read of the state, and the map of q and k (Hedgehog's has half
/// as many rows as features).
double attention_columns(const model::DecoderConfig& config, int64_t layer, int64_t length) {
  if (!config.is_linear_layer(layer)) return static_cast<double>(length);
  const auto features = static_cast<double>(config.linear->feature_size);
  const std::string& map = config.linear->feature_map;
  return (map == "t2r" ? 4.0 : map == "hedgehog" ? 3.0 : 2.0) * features;
}

/// Useful operations of training per token: 6 for every parameter in a product, and attention's,
/// forward and twice that backward.
double flops_per_token(const model::DecoderConfig& config, int64_t num_parameters, int64_t length) {
  const auto heads = static_cast<double>(config.num_heads),
             dim = static_cast<double>(config.head_dim);
  const auto parameters = static_cast<double>(num_parameters - config.num_looked_up());
  double attention = 0.0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    attention += 3.0 * 2.0 * heads * dim * attention_columns(config, layer, length);
  return 6.0 * parameters + attention;
}

std::vector<data::Batch> make_batches(const BenchOptions& options,
                                      int64_t vocab_size,
                                      Backend& backend,
                                      int rank) {
  std::mt19937_64 generator(static_cast<uint64_t>(rank) + 1);
  std::uniform_int_distribution<int64_t> token(0, vocab_size - 1);
  const int64_t largest =
      options.micro_batch_size > 0 ? options.micro_batch_size : options.batch_size;
  std::vector<data::Batch> batches;
  for (int64_t begin = 0; begin < options.batch_size; begin += largest) {
    data::Batch batch =
        data::Batch::make(data::language_model_layout(std::min(largest, options.batch_size - begin),
                                                      options.sequence_length),
                          backend.batch_allocator());
    batch.ends_step = begin + largest >= options.batch_size;
    for (const data::BatchField& field : batch.layout.fields)
      std::generate_n(batch.rows(field.name), field.numel(), [&] { return token(generator); });
    batch.count_targets();
    batches.push_back(batch);
  }
  return batches;
}

struct Report {
  int64_t num_targets = 0;                ///< of a rank and step
  std::vector<double> seconds;            ///< per step, of the slowest rank
  std::optional<double> exposed_seconds;  ///< mean, where the backend knows
  std::vector<TrainingStep::Phase> phases;
  std::vector<KernelTime> kernels;  ///< of rank 0, one step
  int64_t peak_bytes = 0;           ///< of the rank with the most

  double quantile(double q) const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1) + 0.5)];
  }
};

Report measure(const BenchOptions& options,
               TrainingStep& step,
               const StepInputs& inputs,
               Backend& backend) {
  dist::Communicator& communicator = backend.communicator();
  Report report;
  for (const data::Batch& batch : inputs.batches) report.num_targets += batch.num_targets();
  for (int64_t i = 0; i < options.timing.untimed + options.timing.timed; ++i) {
    if (i == options.timing.untimed) communicator.barrier();
    const Clock::time_point start = Clock::now();
    const StepTotals totals = step.run(inputs);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (totals.is_skipped) throw NumericError(concat("step ", i, " was not finite"));
    if (i < options.timing.untimed) continue;
    report.seconds.push_back(seconds);
    if (totals.exposed_communication_seconds.has_value()) {
      report.exposed_seconds =
          report.exposed_seconds.value_or(0.0) +
          *totals.exposed_communication_seconds / static_cast<double>(options.timing.timed);
    }
  }
  report.peak_bytes = backend.peak_memory_bytes();
  const Tensor slowest = torch::tensor(report.seconds, torch::kFloat64);
  communicator.all_reduce(slowest, dist::Reduction::kMax);
  report.seconds.assign(slowest.data_ptr<double>(), slowest.data_ptr<double>() + slowest.numel());
  const Tensor most = torch::tensor({report.peak_bytes}, torch::kInt64);
  communicator.all_reduce(most, dist::Reduction::kMax);
  report.peak_bytes = most.item<int64_t>();
  if (!options.trace.empty()) {
    if (communicator.rank() == 0) {
      report.kernels = backend.trace(options.trace, [&] { step.run(inputs); });
    } else {
      step.run(inputs);
    }
  }
  if (inputs.batches.size() == 1) report.phases = step.time_phases(inputs);
  return report;
}

void print_report(const BenchOptions& options,
                  const model::Trainable& model,
                  const Report& report,
                  const Backend& backend,
                  int world) {
  const double median = report.quantile(0.5);
  const auto tokens = static_cast<double>(report.num_targets);
  const double peak =
      options.peak_tflops > 0.0 ? options.peak_tflops : data_sheet_tflops(backend.description());
  const double flops =
      flops_per_token(model.config(), model.parameters().num_scalars(), options.sequence_length);
  const double achieved = flops * tokens / median / 1e12;
  if (options.json) {
    nlohmann::ordered_json json{{"ranks", world},
                                {"batch_size", options.batch_size},
                                {"sequence_length", options.sequence_length},
                                {"parameters", model.parameters().num_scalars()},
                                {"tokens_per_second", tokens * world / median},
                                {"seconds_median", median},
                                {"seconds_p10", report.quantile(0.1)},
                                {"seconds_p90", report.quantile(0.9)},
                                {"tflops_per_rank", achieved},
                                {"peak_memory_bytes", report.peak_bytes}};
    if (peak > 0.0) json["mfu"] = achieved / peak;
    if (report.exposed_seconds.has_value()) json["exposed_seconds"] = *report.exposed_seconds;
    for (const TrainingStep::Phase& phase : report.phases)
      json["phases"][phase.name] = phase.seconds;
    for (const KernelTime& kernel : report.kernels)
      json["kernels"].push_back(
          {{"name", kernel.name}, {"count", kernel.count}, {"seconds", kernel.seconds}});
    std::cout << json.dump() << "\n";
    return;
  }
  const auto milliseconds = [](double seconds) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.2f ms", 1e3 * seconds);
    return std::string(text);
  };
  char line[200];
  std::snprintf(line,
                sizeof(line),
                "%.0f tokens/s on %d rank(s), %.0f each; %.0f TFLOP/s each",
                tokens * world / median,
                world,
                tokens / median,
                achieved);
  std::cout << line;
  if (peak > 0.0) {
    std::snprintf(line, sizeof(line), ", MFU %.1f %% of %.0f", 100.0 * achieved / peak, peak);
    std::cout << line;
  }
  std::cout << "\nstep " << milliseconds(median) << " (p10 " << milliseconds(report.quantile(0.1))
            << ", p90 " << milliseconds(report.quantile(0.9)) << ", " << report.seconds.size()
            << " steps, the slowest rank of each)\n";
  if (report.peak_bytes > 0) {
    std::snprintf(line,
                  sizeof(line),
                  "memory %.2f GiB at most\n",
                  static_cast<double>(report.peak_bytes) / (1 << 30));
    std::cout << line;
  }
  for (const TrainingStep::Phase& phase : report.phases)
    std::cout << "  " << phase.name << ": " << milliseconds(phase.seconds) << "\n";
  if (report.phases.empty())
    std::cout << "  phases: not measured; only a captured step of one micro-batch has them\n";
  for (size_t i = 0; i < std::min(report.kernels.size(), kNumListedKernels); ++i) {
    const KernelTime& kernel = report.kernels[i];
    std::snprintf(line,
                  sizeof(line),
                  "  %7.2f ms %5ld x %.110s\n",
                  1e3 * kernel.seconds,
                  static_cast<long>(kernel.count),
                  kernel.name.c_str());
    std::cout << line;
  }
  if (report.exposed_seconds.has_value())
    std::cout << "  exposed all-reduce: " << milliseconds(*report.exposed_seconds) << "\n";
  std::cout << "model: " << model.parameters().num_scalars() << " parameters; "
            << options.batch_size << " x " << options.sequence_length << " tokens a step and rank; "
            << backend.description() << "\n";
}

}  // namespace

int run_bench_train(const Invocation& invocation) {
  BenchOptions values;
  OptionSet options("bench train",
                    "Time training steps on random tokens, alone or under mpirun; by default a "
                    "GPT-2-124M with T2R attention.");
  values.bind(options);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;
  values.backend.resolve(invocation);
  values.validate();

  Session session(invocation, options, values.backend);
  Backend& backend = session.backend();
  values.model.say_idle(options);
  say_idle_backend_options(options, values.backend, session.world().size());
  const std::unique_ptr<model::Trainable> model = values.model.make(values.sequence_length);
  check_length("sequence-length", values.sequence_length, *model);
  session.fit_threads(
      work_of_step(*model,
                   values.sequence_length *
                       (values.micro_batch_size > 0 ? values.micro_batch_size : values.batch_size),
                   /*trains=*/true));
  TrainingRun run(*model,
                  backend,
                  {.loss = {.recompute = values.backend.recompute},
                   .clip_norm = 1.0,
                   .bucket_mib = values.backend.bucket_mib});
  const std::vector<data::Batch> batches =
      make_batches(values, model->config().vocab_size, backend, session.world().rank());
  const StepInputs inputs{.batches = batches,
                          .update = {.learning_rate = 1e-4, .map_learning_rate = 1e-4}};
  const Report report = measure(values, run.step(), inputs, backend);
  if (session.world().rank() == 0)
    print_report(values, *model, report, backend, session.world().size());
  return 0;
}

}  // namespace t2r::launch
