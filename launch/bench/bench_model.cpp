#include "launch/bench/bench_model.h"

#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/cli/idle_options.h"
#include "model/files/hugging_face.h"

namespace t2r::launch {

void BenchModel::bind(OptionSet& options) {
  options.add("model", folder, "Hugging Face folder instead of the [model] table");
  options.add("vocab-size", vocab_size, "of the [model] table's model").range(1, 1 << 24);
  table.bind(options);
}

void BenchModel::say_idle(const OptionSet& options) const {
  options.say_if_idle("vocab-size", !folder.empty(), "the model of --model has its own");
  if (folder.empty()) say_idle_model_table(options, table);
}

std::unique_ptr<model::DecoderLM> BenchModel::make(int64_t positions) const {
  if (!folder.empty()) return std::move(model::load_model(resolve_checkpoint(folder)).model);
  auto model = std::make_unique<model::DecoderLM>(table.resolve(vocab_size, positions));
  model->initialize(1);
  return model;
}

}  // namespace t2r::launch
