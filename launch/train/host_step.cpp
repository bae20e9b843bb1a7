#include "launch/train/training_step.h"

namespace t2r::launch {
namespace {

using torch::Tensor;

model::TensorBatch tensors_of(const data::Batch& batch) {
  return tensor_batch(
      batch.layout,
      torch::from_blob(batch.memory.data, {data::memory_numel(batch.layout)}, torch::kInt64));
}

class HostStep : public TrainingStep {
 public:
  explicit HostStep(const StepParts& parts) : parts_(parts) {}

  StepTotals run(const StepInputs& inputs) override {
    Local local{.is_stop_requested = inputs.is_stop_requested};
    parts_.reducer.begin_step();
    forward_backward(inputs, local);
    const dist::ReductionReport report = parts_.reducer.finish_step();
    StepTotals totals = reduce_totals(local);
    totals.exposed_communication_seconds = report.exposed_seconds;
    update_parameters(inputs, totals);
    return totals;
  }

 private:
  struct Local {
    double loss_sum = 0.0;
    int64_t num_targets = 0;
    bool is_stop_requested = false;
  };

  void forward_backward(const StepInputs& inputs, Local& local) {
    torch::manual_seed(inputs.dropout_seed);
    for (size_t i = 0; i < inputs.batches.size(); ++i) {
      const data::Batch& batch = inputs.batches[i];
      parts_.reducer.begin_micro_step(/*is_last=*/i + 1 == inputs.batches.size());
      const model::LossTerms loss = parts_.loss_of(tensors_of(batch), inputs.objective);
      loss.sum.backward();
      local.loss_sum += loss.sum.item<double>();
      local.num_targets += loss.targets.item<int64_t>();
    }
  }

  // One small reduction carries everything that ranks have to agree on: sums, a stop signal, and
  // each rank's mean.
  StepTotals reduce_totals(const Local& local) {
    constexpr int kFixed = 3;
    dist::Communicator& communicator = parts_.communicator;
    const Tensor values = torch::zeros({kFixed + communicator.size()}, torch::kFloat64);
    double* value = values.data_ptr<double>();
    value[0] = local.loss_sum;
    value[1] = static_cast<double>(local.num_targets);
    value[2] = local.is_stop_requested ? 1.0 : 0.0;
    if (local.num_targets > 0)
      value[kFixed + communicator.rank()] = local.loss_sum / static_cast<double>(local.num_targets);
    communicator.all_reduce(values, dist::Reduction::kSum);
    return {.loss_sum = value[0],
            .num_targets = static_cast<int64_t>(value[1]),
            .loss_max_rank = values.narrow(0, kFixed, communicator.size()).max().item<double>(),
            .is_stop_requested = value[2] > 0.0};
  }

  // All ranks hold the same bits here, so they decide alike without asking each other.
  void update_parameters(const StepInputs& inputs, StepTotals& totals) {
    const model::AdamW::Norm norm =
        parts_.optimizer.norm(totals.loss_sum, totals.num_targets, parts_.clip_norm);
    totals.gradient_norm = norm.value;
    totals.is_skipped = !norm.is_finite;
    if (totals.is_skipped) return;
    model::AdamW::Step update = inputs.update;
    update.gradient_scale = norm.gradient_scale;
    parts_.optimizer.update(update);
  }

  StepParts parts_;
};

}  // namespace

std::unique_ptr<TrainingStep> make_host_step(const StepParts& parts) {
  return std::make_unique<HostStep>(parts);
}

}  // namespace t2r::launch
