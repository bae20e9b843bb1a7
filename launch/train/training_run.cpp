#include "launch/train/training_run.h"

#include "dist/agreement.h"
#include "dist/parameter_sync.h"

namespace t2r::launch {
namespace {

model::ParameterArena make_arena(model::Trainable& model, Backend& backend) {
  check_model_fits(model.config(), backend.placement());
  return dist::made_on_all_ranks(backend.communicator(), [&] {
    return model::ParameterArena(model.parameters(), backend.placement());
  });
}

}  // namespace

TrainingRun::TrainingRun(model::Trainable& model,
                         Backend& backend,
                         const TrainingRunOptions& options)
    : arena_(make_arena(model, backend)),
      optimizer_(dist::made_on_all_ranks(backend.communicator(),
                                         [&] { return model::AdamW(arena_, options.optimizer); })),
      reducer_(gradient_slices(arena_),
               arena_.gradients(),
               backend.communicator(),
               {.cap_bytes = options.bucket_mib << 20}) {
  dist::broadcast_parameters(backend.communicator(), arena_.masters());
  arena_.round_masters();
  step_ = backend.make_step({.model = model,
                             .arena = arena_,
                             .optimizer = optimizer_,
                             .reducer = reducer_,
                             .communicator = backend.communicator(),
                             .loss = options.loss,
                             .clip_norm = options.clip_norm});
}

}  // namespace t2r::launch
