#pragma once

namespace t2r::launch {

/// What the loss of an optimizer step is.
enum class Objective {
  kText,          ///< cross-entropy, nats per token
  kDistillation,  ///< in part or all of it a divergence from the teacher, nats per token
  kTransfer,      ///< attention transfer's mean square
};

}  // namespace t2r::launch
