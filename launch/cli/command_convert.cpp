#include <algorithm>
#include <iomanip>
#include <iostream>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/folder_manifest.h"
#include "data/tokenizers/tokenizer.h"
#include "launch/checkpoints/checkpoint_folder.h"
#include "launch/command.h"
#include "launch/model_files.h"
#include "launch/options/options.h"
#include "model/files/convert.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;

struct ConvertOptions {
  std::string model, output, feature_map = "t2r";
  int64_t feature_size = 0, keep_every = 0, seed = 1;
  std::vector<int64_t> keep;
  bool map_per_query_head = false;
  double denominator_floor = 1e-2;
};

model::LinearAttentionConfig linear_config(const ConvertOptions& options,
                                           const model::DecoderConfig& config) {
  model::LinearAttentionConfig linear;
  linear.feature_map = options.feature_map;
  linear.feature_size = options.feature_size > 0
                            ? options.feature_size
                            : model::default_feature_size(options.feature_map, config.head_dim);
  linear.denominator_floor = options.denominator_floor;
  linear.map_per_query_head = options.map_per_query_head;
  if (!options.keep.empty() && options.keep_every > 0) {
    throw ConfigError("--keep-softmax and --keep-softmax-every exclude each other");
  }
  linear.softmax_layers = model::kept_softmax_layers(
      options.keep_every > 0
          ? model::every_nth_layer_from_top(config.num_layers, options.keep_every)
          : options.keep,
      config.num_layers,
      "there is nothing to convert; keep fewer (--keep-softmax, --keep-softmax-every)");
  return linear;
}

void say_idle_options(const OptionSet& options,
                      const ConvertOptions& values,
                      const model::DecoderConfig& config) {
  options.say_if_idle("map-per-query-head",
                      config.num_heads == config.num_kv_heads,
                      "the model has a key head for each query head");
  if (values.feature_map == "t2r") return;
  const std::string map = concat("--feature-map ", values.feature_map);
  options.say_if_idle("denominator-floor", true, concat(map, " has no floor"));
  const bool has_none = values.feature_map == "elu";
  for (const char* key : {"seed", "map-per-query-head"})
    options.say_if_idle(key, has_none, concat(map, " has no parameters"));
}

void print_summary(const ConvertOptions& options, const model::Conversion& conversion) {
  const model::DecoderConfig& config = conversion.converted.model->config();
  const model::LinearAttentionConfig& linear = *config.linear;
  std::cout << options.model << " -> " << options.output << ": "
            << config.num_layers - static_cast<int64_t>(linear.softmax_layers.size()) << " of "
            << config.num_layers << " layers are linear (" << linear.feature_map << ", "
            << linear.feature_size << " features per head)\n";
  std::cout << "kept: " << conversion.num_pretrained << " pretrained parameters, bit for bit\n";
  std::cout << "new: " << conversion.num_new << " parameters in " << conversion.new_tensors.size()
            << " tensors (+" << std::setprecision(3)
            << 100.0 * static_cast<double>(conversion.num_new) /
                   static_cast<double>(conversion.num_pretrained)
            << " %)\n";
  for (const std::string& name : conversion.new_tensors) std::cout << "  " << name << "\n";
}

}  // namespace

int run_convert(const Invocation& invocation) {
  ConvertOptions values;
  OptionSet options(
      "convert",
      "Swap softmax attention for linear attention; every pretrained weight stays as it is.");
  options.add("model", values.model, "Hugging Face folder of a softmax model").required();
  options.add("output", values.output, "folder to write; must not exist").required();
  options.add_choice(
      "feature-map", values.feature_map, model::feature_map_names(), "of the linear layers");
  options
      .add("feature-size",
           values.feature_size,
           "features per head; 0: 32 for t2r, the head dimension for elu, twice that for hedgehog")
      .at_least(0);
  options.add("keep-softmax", values.keep, "layers that keep softmax attention, counted from 0")
      .at_least(0);
  options
      .add("keep-softmax-every",
           values.keep_every,
           "keep every n-th layer from the top (4: T2R 75 %); 0: none")
      .at_least(0);
  options.add("map-per-query-head",
              values.map_per_query_head,
              "with grouped queries: one map per query head, not per key head");
  options.add("denominator-floor", values.denominator_floor, "t2r: smallest denominator")
      .above(0.0);
  options.add("seed", values.seed, "of the new feature maps").at_least(0);
  if (options.parse(invocation.arguments) == OptionSet::Outcome::kDone) return 0;

  const fs::path folder = resolve_checkpoint(values.model);
  const model::ModelSource source(folder);
  data::verify_tokenizer_files(folder);
  say_idle_options(options, values, source.config());
  const model::Conversion conversion = model::convert_to_linear(
      source, linear_config(values, source.config()), static_cast<uint64_t>(values.seed));
  make_folder(values.output, [&](const fs::path& temporary) {
    model::save_converted(*conversion.converted.model, source, temporary);
    for (const fs::path& file : companion_files(folder)) {
      write_file_durably(temporary / file.filename(), read_file(file));
    }
    write_folder_manifest(temporary, {{"written_by", "t2r convert"}});
  });
  print_summary(values, conversion);
  return 0;
}

}  // namespace t2r::launch
