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

struct FamilyNames {
  const char* prefix;                ///< of the whole model
  std::array<const char*, 4> first;  ///< how names begin behind it
};

FamilyNames names_of(Family family) {
  if (family == Family::kGpt2) return {"transformer.", {"wte.", "wpe.", "h.", "ln_f."}};
  return {"model.", {"embed_tokens.", "layers.", "norm.", "rotary_emb."}};
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

NamedWeights name_weights(const ModelWeights& weights, Family family, const std::string& source) {
  const FamilyNames names = names_of(family);
  NamedWeights named;
  bool has_prefix = false, lacks_prefix = false;
  for (const TensorView* view : weights.tensors()) {
    refuse_other_kinds(view->name, source);
    std::string name = without_wrappers(view->name, named.wrapper_removed);
    const bool is_bare = std::ranges::any_of(
        names.first, [&](const char* begin) { return name.starts_with(begin); });
    has_prefix = has_prefix || name.starts_with(names.prefix);
    lacks_prefix = lacks_prefix || is_bare;
    if (is_bare) name = names.prefix + name;
    if (!named.tensors.emplace(name, view).second)
      throw DataError(concat(source,
                             ": tensor ",
                             quoted_name(view->name),
                             " is there twice, once with and once without a prefix"));
  }
  if (lacks_prefix && !has_prefix) named.prefix_removed = names.prefix;
  return named;
}

bool is_buffer(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".inv_freq");
}

}  // namespace t2r::model
