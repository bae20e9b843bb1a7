#pragma once

namespace t2r::model {

class TensorBatch;
class Trainable;
struct LossOptions;
struct LossTerms;

/// A kind of loss.
struct Objective {
  const char* name;                ///< in records
  const char* loss_name;           ///< for people
  bool is_cross_entropy = false;   ///< of the targets alone: its exponential is a perplexity
  bool trains_maps_alone = false;  ///< a stage in front of finetuning
  LossTerms (*loss)(const Trainable& model, const TensorBatch& batch, const LossOptions& options);
};

/// The table of objectives: a file beside this one each, and a line here.
extern const Objective kText;          ///< cross-entropy, nats per token
extern const Objective kDistillation;  ///< in part or all of it a divergence from the teacher
extern const Objective kTransfer;      ///< attention transfer's mean square

}  // namespace t2r::model
