#include "model/files/weight_names.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/quoted_name.h"

namespace t2r::model {
namespace {

constexpr std::array kWrappers = {
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"};
constexpr const char* kOuterWrapper = "module";

/// What names are known to end in where weights are quantized: GPTQ and AWQ, bitsandbytes,
/// compressed-tensors, fp8.
constexpr std::array kQuantizedEndings = {".qweight",
                                          ".qzeros",
                                          ".g_idx",
                                          ".SCB",
                                          ".absmax",
                                          ".quant_map",
                                          ".weight_packed",
                                          ".weight_scale",
                                          ".weight_scale_inv",
                                          ".input_scale"};

/// Whether a name stands as the model without its head has it: without the prefix of the whole.
bool is_bare(std::string_view name, const TensorNames& names) {
  const auto begins = [&](std::string_view part) {
    return !part.empty() && name.starts_with(part) && name.substr(part.size()).starts_with('.');
  };
  return begins(names.token_embedding) || begins(names.position_embedding) ||
         begins(names.blocks) || begins(names.final_norm) || begins("rotary_emb");
}

void refuse_other_kinds(std::string_view name, const std::string& source) {
  if (name.find(".lora_A.") != name.npos || name.find(".lora_B.") != name.npos ||
      name.find(".base_layer.") != name.npos)
    throw ConfigError(concat(source,
                             ": tensor ",
                             quoted_name(name),
                             " belongs to a LoRA adapter; merge it into its model first "
                             "(merge_and_unload(), then save_pretrained)"));
  for (const char* ending : kQuantizedEndings)
    if (name.ends_with(ending))
      throw ConfigError(concat(source,
                               ": tensor ",
                               quoted_name(name),
                               " belongs to quantized weights, allowed: F32, F16, BF16, F64; take "
                               "the model that this one was made from"));
}

/// The name without wrappers; each that was there is left in `removed`.
std::string without_wrappers(const std::string& name, std::string& removed) {
  std::string kept;
  size_t begin = 0;
  while (begin <= name.size()) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool is_wrapper = std::ranges::find(kWrappers, part) != kWrappers.end() ||
                            (kept.empty() && part == kOuterWrapper);
    if (is_wrapper) {
      removed = part + ".";
    } else {
      kept += (kept.empty() ? "" : ".") + part;
    }
    begin = end + 1;
  }
  return kept;
}

}  // namespace

const TensorView* NamedWeights::find(std::string_view name) const {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : found->second;
}

std::string NamedWeights::file_name(const std::string& name) const {
  return name.starts_with(prefix_removed) ? name.substr(prefix_removed.size()) : name;
}

NamedWeights name_weights(const ModelWeights& weights,
                          const TensorNames& names,
                          const std::string& source) {
  NamedWeights named;
  bool has_prefix = false, lacks_prefix = false;
  for (const TensorView* view : weights.tensors()) {
    refuse_other_kinds(view->name, source);
    std::string name = without_wrappers(view->name, named.wrapper_removed);
    has_prefix = has_prefix || name.starts_with(names.model);
    if (is_bare(name, names)) {
      lacks_prefix = true;
      name.insert(0, names.model);
    }
    if (!named.tensors.emplace(name, view).second)
      throw DataError(concat(source,
                             ": tensor ",
                             quoted_name(view->name),
                             " is there twice, once with and once without a prefix"));
  }
  if (lacks_prefix && !has_prefix) named.prefix_removed = names.model;
  return named;
}

bool is_buffer(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".inv_freq");
}

}  // namespace t2r::model
