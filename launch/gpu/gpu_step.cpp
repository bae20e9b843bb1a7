#include "launch/gpu/gpu_step.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

#include <compare>
#include <map>
#include <optional>

#include "base/error.h"
#include "dist/agreement.h"
#include "launch/gpu_memory.h"
#include "model/ops/optimizer_op.h"

namespace t2r::launch {
namespace {

namespace control = kernels::cuda;  // slots of the optimizer's numbers
using torch::Tensor;

/// The numbers that host and device exchange, float64: the optimizer's control slots, then the sums
/// that ranks agree on, then each rank's mean loss.
class Board {
 public:
  explicit Board(int world)
      : size_(control::kControlSlots + kSums + world),
        device_(torch::zeros({size_}, torch::TensorOptions(torch::kCUDA).dtype(torch::kFloat64))),
        host_in_(torch::zeros({size_},
                              torch::TensorOptions().dtype(torch::kFloat64).pinned_memory(true))),
        host_out_(torch::zeros_like(host_in_, torch::TensorOptions().pinned_memory(true))) {}

  enum Sum { kLoss, kTargets, kStop, kSums };

  /// Host numbers for the next upload.
  double& slot(control::ControlSlot which) { return host_in_.data_ptr<double>()[which]; }
  double& sum(Sum which) { return host_in_.data_ptr<double>()[control::kControlSlots + which]; }

  void upload() { device_.copy_(host_in_, /*non_blocking=*/true); }
  void download() { host_out_.copy_(device_, /*non_blocking=*/true); }

  /// What the last download brought.
  double result(control::ControlSlot which) const { return host_out_.data_ptr<double>()[which]; }
  double result(Sum which) const {
    return host_out_.data_ptr<double>()[control::kControlSlots + which];
  }
  double largest_mean() const { return mean_losses_of(host_out_).max().item<double>(); }

  Tensor device_control() const { return device_.narrow(0, 0, control::kControlSlots); }
  Tensor device_slot(control::ControlSlot which) const { return device_[which]; }
  Tensor device_sum(Sum which) const { return device_[control::kControlSlots + which]; }
  Tensor device_sums() const {
    return device_.narrow(0, control::kControlSlots, size_ - control::kControlSlots);
  }
  Tensor device_mean_losses() const { return mean_losses_of(device_); }

 private:
  Tensor mean_losses_of(const Tensor& board) const {
    const int64_t begin = control::kControlSlots + kSums;
    return board.narrow(0, begin, size_ - begin);
  }

  int64_t size_;
  Tensor device_, host_in_, host_out_;
};

class GpuStep : public TrainingStep {
 public:
  GpuStep(const StepParts& parts, bool uses_graph)
      : parts_(parts),
        uses_graph_(uses_graph),
        stream_(c10::cuda::getStreamFromPool()),
        board_(parts.communicator.size()),
        spans_(ops::make_spans(slices_of(parts.arena), parts.arena.masters().device())) {}

  StepTotals run(const StepInputs& inputs) override {
    // Evaluation and checkpoints work on the default stream: order the step behind them, and them
    // behind the step.
    const c10::cuda::CUDAStream outside = c10::cuda::getCurrentCUDAStream();
    order(outside, stream_);
    {
      const c10::cuda::CUDAStreamGuard guard(stream_);
      prepare(inputs);
      torch::manual_seed(inputs.dropout_seed);
      stage(inputs);
      for (size_t i = 0; i < inputs.batches.size(); ++i) {
        Program& program = programs_.at(kind_of(inputs, i));
        program.take(inputs.batches[i]);
        if (program.graph != nullptr) {
          program.graph->replay();
        } else {
          enqueue(kind_of(inputs, i), program);
        }
      }
      board_.download();
      parts_.communicator.synchronize_device();
    }
    order(stream_, outside);
    return totals();
  }

  std::vector<Phase> time_phases(const StepInputs& inputs) override {
    if (!uses_graph_) return {};
    const c10::cuda::CUDAStreamGuard guard(stream_);
    stage(
        {.batches = inputs.batches, .update = {.number = inputs.update.number}});  // rates of zero
    const Kind kind = kind_of(inputs, 0);
    Program& whole = programs_.at(kind);
    const auto forward = capture([&] { whole.loss(parts_); });
    const auto forward_backward = capture([&] {
      parts_.reducer.begin_step();
      parts_.reducer.begin_micro_step(/*is_last=*/false);
      whole.loss(parts_).sum.backward();
      parts_.reducer.discard_step();
    });
    // One rank has nothing to sum, and LibTorch warns of empty graphs.
    std::unique_ptr<at::cuda::CUDAGraph> reduction;
    if (parts_.communicator.size() > 1) {
      reduction = capture(
          [&] { parts_.communicator.all_reduce(parts_.arena.gradients(), dist::Reduction::kSum); });
    }
    const auto update = capture([&] { this->update(); });
    const double forward_seconds = seconds_of(*forward),
                 both_seconds = seconds_of(*forward_backward),
                 whole_seconds = seconds_of(*whole.graph),
                 reduction_seconds = reduction != nullptr ? seconds_of(*reduction) : 0.0;
    const double update_seconds = seconds_of(*update);
    return {{"forward, with the gradient of the logits", forward_seconds},
            {"backward", both_seconds - forward_seconds},
            {"gradient norm and AdamW", update_seconds},
            {"all-reduce alone", reduction_seconds},
            {"exposed: step less forward, backward, update",
             whole_seconds - both_seconds - update_seconds}};
  }

 private:
  /// Micro-batches of one kind share a graph.
  struct Kind {
    data::BatchLayout layout;
    bool is_first, is_last;
    const model::Objective* objective;
    auto operator<=>(const Kind&) const = default;
  };

  struct Program {
    explicit Program(const Kind& kind)
        : memory(torch::empty({data::memory_numel(kind.layout)},
                              torch::TensorOptions(torch::kCUDA).dtype(torch::kInt64))),
          batch(tensor_batch(kind.layout, memory)),
          objective(*kind.objective) {}

    /// All fields and their count in one copy; the batch outlives the step.
    void take(const data::Batch& given) {
      memory.copy_(torch::from_blob(given.memory.data, memory.sizes(), torch::kInt64),
                   /*non_blocking=*/true);
    }

    model::LossTerms loss(const StepParts& parts) const { return parts.loss_of(batch, objective); }

    Tensor memory;             ///< a batch of the kind, int64 on the device
    model::TensorBatch batch;  ///< views of it
    const model::Objective& objective;
    std::unique_ptr<at::cuda::CUDAGraph> graph;
  };

  static std::vector<ops::ParameterSlice> slices_of(const model::ParameterArena& arena) {
    std::vector<ops::ParameterSlice> slices;
    for (const model::ParameterArena::Slice& slice : arena.slices()) {
      const model::Parameter& parameter = arena.parameters().all()[slice.index];
      slices.push_back({.offset = slice.offset,
                        .numel = slice.numel,
                        .decays = parameter.decays,
                        .is_map = parameter.pieces.front().is_new});
    }
    return slices;
  }

  static void order(const c10::cuda::CUDAStream& before, const c10::cuda::CUDAStream& after) {
    at::cuda::CUDAEvent event;
    event.record(before);
    event.block(after);
  }

  static Kind kind_of(const StepInputs& inputs, size_t i) {
    return {inputs.batches[i].layout, i == 0, i + 1 == inputs.batches.size(), &inputs.objective};
  }

  /// Makes the programs that are missing. All ranks come here with new kinds at the same steps, the
  /// first of each stage, so that one rank's failure (memory, above all) can become everybody's.
  void prepare(const StepInputs& inputs) {
    bool is_missing = false;
    for (size_t i = 0; i < inputs.batches.size(); ++i)
      is_missing = is_missing || !programs_.contains(kind_of(inputs, i));
    if (!is_missing) return;
    dist::on_all_ranks(parts_.communicator, [&] { forget_other_stages(inputs.objective); });
    const auto for_missing = [&](const auto& body) {
      dist::on_all_ranks(parts_.communicator, [&] {
        explaining_out_of_memory(inputs, [&] {
          for (size_t i = 0; i < inputs.batches.size(); ++i)
            body(kind_of(inputs, i), inputs.batches[i]);
          c10::cuda::getCurrentCUDAStream().synchronize();
        });
      });
    };
    for_missing([&](const Kind& kind, const data::Batch& batch) { warm_up(kind, batch); });
    if (!uses_graph_) return;
    warm_up_collectives();
    c10::cuda::CUDACachingAllocator::emptyCache();  // graphs have memory of their own
    for_missing([&](const Kind& kind, const data::Batch&) {
      Program& program = programs_.at(kind);
      if (program.graph == nullptr) program.graph = capture([&] { enqueue(kind, program); });
    });
  }

  /// A stage that has ended leaves its memory to the next.
  void forget_other_stages(const model::Objective& objective) {
    const auto is_other = [&](const auto& item) { return item.first.objective != &objective; };
    if (std::erase_if(programs_, is_other) == 0) return;
    pool_ = {0, 0};
    c10::cuda::CUDACachingAllocator::emptyCache();
  }

  template <class Body>
  static void explaining_out_of_memory(const StepInputs& inputs, const Body& body) {
    try {
      body();
    } catch (const c10::OutOfMemoryError& error) {
      throw dist::gpu_memory_error(error,
                                   concat(" for micro-batches of ",
                                          data::size_text(inputs.batches.front().layout),
                                          " tokens; try a smaller --micro-batch-size"));
    }
  }

  /// Runs a kind once, without collectives and without an update: libraries set themselves up.
  void warm_up(const Kind& kind, const data::Batch& batch) {
    if (programs_.contains(kind)) return;
    Program program(kind);
    program.take(batch);
    parts_.reducer.begin_step();
    parts_.reducer.begin_micro_step(/*is_last=*/false);
    program.loss(parts_).sum.backward();
    parts_.reducer.discard_step();
    programs_.emplace(kind, std::move(program));
  }

  /// NCCL connects the ranks at an operation's first use, which must not be while capturing.
  void warm_up_collectives() {
    for (const dist::Bucket& bucket : parts_.reducer.buckets()) {
      parts_.communicator.all_reduce(
          parts_.arena.gradients().narrow(0, bucket.begin, bucket.end - bucket.begin),
          dist::Reduction::kSum);
    }
    parts_.communicator.all_reduce(board_.device_sums(), dist::Reduction::kSum);
    parts_.communicator.synchronize_device();
  }

  template <class Body>
  std::unique_ptr<at::cuda::CUDAGraph> capture(const Body& body) {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    graph->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    body();
    graph->capture_end();
    pool_ = graph->pool();
    return graph;
  }

  /// Mean of ten replays after two.
  double seconds_of(at::cuda::CUDAGraph& graph) {
    constexpr int kReplays = 10;
    at::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
    for (int i = -2; i < kReplays; ++i) {
      if (i == 0) begin.record(stream_);
      graph.replay();
    }
    end.record(stream_);
    parts_.communicator.synchronize_device();
    return 1e-3 * begin.elapsed_time(end) / kReplays;
  }

  /// The work of one micro-batch, and of the whole step behind the last one.
  void enqueue(const Kind& kind, const Program& program) {
    if (kind.is_first) parts_.reducer.begin_step();
    parts_.reducer.begin_micro_step(kind.is_last);
    const model::LossTerms loss = program.loss(parts_);
    loss.sum.backward();
    board_.device_sum(Board::kLoss).add_(loss.sum.detach());
    board_.device_sum(Board::kTargets).add_(loss.targets);
    if (!kind.is_last) return;
    const dist::ReductionReport report = parts_.reducer.finish_step();
    if (!uses_graph_) exposed_seconds_ = report.exposed_seconds;
    agree_on_totals();
    update();
  }

  /// One small reduction carries everything that ranks have to agree on.
  void agree_on_totals() {
    const int rank = parts_.communicator.rank();
    board_.device_mean_losses()[rank].copy_(board_.device_sum(Board::kLoss) /
                                            board_.device_sum(Board::kTargets).clamp_min(1.0));
    parts_.communicator.all_reduce(board_.device_sums(), dist::Reduction::kSum);
    board_.device_slot(control::kLossSum).copy_(board_.device_sum(Board::kLoss));
    board_.device_slot(control::kNumTokens).copy_(board_.device_sum(Board::kTargets));
  }

  void update() {
    const model::AdamWOptions& options = parts_.optimizer.options();
    const Tensor board = board_.device_control();
    ops::gradient_norm(parts_.arena.gradients(), board, options.beta1, options.beta2);
    ops::adamw({.master = parts_.arena.masters(),
                .values = parts_.arena.has_own_values() ? std::optional(parts_.arena.values())
                                                        : std::nullopt,
                .gradients = parts_.arena.gradients(),
                .first_moment = parts_.optimizer.first_moment(),
                .second_moment = parts_.optimizer.second_moment(),
                .spans = spans_,
                .control = board},
               {options.beta1, options.beta2, options.eps, options.weight_decay});
  }

  void stage(const StepInputs& inputs) {
    double num_targets = 0.0;
    for (const data::Batch& batch : inputs.batches)
      num_targets += static_cast<double>(batch.num_targets());
    board_.slot(control::kLearningRate) = inputs.update.learning_rate;
    board_.slot(control::kMapLearningRate) = inputs.update.map_learning_rate;
    board_.slot(control::kClipNorm) = parts_.clip_norm;
    board_.slot(control::kNumUpdates) = static_cast<double>(inputs.update.number - 1);
    board_.slot(control::kNumTokens) =
        num_targets;                    // of all ranks, once the step has added them up
    board_.sum(Board::kTargets) = 0.0;  // the micro-batches add theirs
    board_.sum(Board::kStop) = inputs.is_stop_requested ? 1.0 : 0.0;
    board_.upload();
  }

  StepTotals totals() const {
    return {.loss_sum = board_.result(Board::kLoss),
            .num_targets = static_cast<int64_t>(board_.result(Board::kTargets)),
            .loss_max_rank = board_.largest_mean(),
            .is_stop_requested = board_.result(Board::kStop) > 0.0,
            .gradient_norm = board_.result(control::kGradientNorm),
            .is_skipped = board_.result(control::kIsSkipped) != 0.0,
            .exposed_communication_seconds = exposed_seconds_};
  }

  StepParts parts_;
  bool uses_graph_;
  c10::cuda::CUDAStream stream_;
  Board board_;
  Tensor spans_;
  std::optional<double> exposed_seconds_;
  at::cuda::MempoolId_t pool_{0, 0};
  std::map<Kind, Program> programs_;
};

}  // namespace

std::unique_ptr<TrainingStep> make_gpu_step(const StepParts& parts, bool uses_graph) {
  return std::make_unique<GpuStep>(parts, uses_graph);
}

}  // namespace t2r::launch
