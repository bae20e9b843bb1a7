#pragma once

#include <memory>

#include "launch/train/training_step.h"

namespace t2r::launch {

/// The step on one GPU per rank, in one CUDA graph for each kind of micro-batch: the host copies
/// tokens and a few numbers in, replays, and reads a few numbers back. Decisions that depend on the
/// gradients (clip, skip) are taken on the device.
///
/// @param uses_graph  false: launch every kernel every time
std::unique_ptr<TrainingStep> make_gpu_step(const StepParts& parts, bool uses_graph);

}  // namespace t2r::launch
