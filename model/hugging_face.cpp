#include "model/hugging_face.h"

#include <cstring>
#include <set>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "model/safetensors_index.h"

namespace t2r::model {
namespace {

using torch::Tensor;

constexpr uint64_t kMaxShardBytes = uint64_t{5} << 30;  // as transformers' save_pretrained
constexpr const char* kTiedHead = "lm_head.weight";
constexpr const char* kGpt2Prefix = "transformer.";

torch::ScalarType scalar_type(DType dtype, const std::string& name) {
  switch (dtype) {
    case DType::f32:
      return torch::kFloat32;
    case DType::f16:
      return torch::kFloat16;
    case DType::bf16:
      return torch::kBFloat16;
    case DType::f64:
      return torch::kFloat64;
    default:
      throw DataError(concat(
          "tensor \"", name, "\" has type ", dtype_name(dtype), ", allowed: F32, F16, BF16, F64"));
  }
}

// Buffers that old files carry and that are no parameters: masks and RoPE tables.
bool is_buffer(const std::string& name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".inv_freq");
}

void copy_tensor(const TensorView& view, const Tensor& to, const std::string& folder) {
  if (torch::IntArrayRef(view.shape) != to.sizes()) {
    throw DataError(concat(folder,
                           ": tensor \"",
                           view.name,
                           "\" has shape ",
                           shape_text(view.shape),
                           ", the config asks for ",
                           shape_text(to.sizes().vec())));
  }
  // A clone first: the file may place elements at any address.
  Tensor bytes = torch::empty({static_cast<int64_t>(view.num_bytes)}, torch::kUInt8);
  std::memcpy(bytes.data_ptr(), view.data, view.num_bytes);
  to.copy_(bytes.view(scalar_type(view.dtype, view.name)).view(to.sizes()));
}

}  // namespace

SourceFormat load_weights(DecoderLM& model,
                          const std::filesystem::path& folder,
                          bool may_lack_new) {
  const torch::NoGradGuard no_grad;
  const ModelWeights weights = open_model_weights(folder);
  SourceFormat format;
  format.config_json = read_file(folder / kConfigFile);
  format.metadata = weights.metadata();
  if (model.config().family == Family::kGpt2 && weights.find("wte.weight") != nullptr) {
    format.name_prefix_removed = kGpt2Prefix;
  }
  std::set<std::string> used;
  for (const Parameter& parameter : model.parameters().all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      std::string name = piece.name;
      if (name.starts_with(format.name_prefix_removed))
        name.erase(0, format.name_prefix_removed.size());
      const TensorView* view = weights.find(name);
      if (view == nullptr) {
        if (piece.is_new && may_lack_new) continue;
        throw DataError(concat(folder.string(),
                               ": tensor \"",
                               name,
                               "\" is missing",
                               piece.is_new ? " (a feature map: is this a converted model?)" : ""));
      }
      copy_tensor(*view, parameter.piece_value(piece), folder.string());
      format.dtypes[name] = view->dtype;
      used.insert(name);
    }
  }
  for (const TensorView* view : weights.tensors()) {
    const bool is_tied_head = view->name == kTiedHead && model.config().tied_embeddings;
    if (!used.contains(view->name) && !is_buffer(view->name) && !is_tied_head) {
      throw DataError(concat(folder.string(),
                             ": tensor \"",
                             view->name,
                             "\" is not part of the model in ",
                             kConfigFile));
    }
  }
  return format;
}

LoadedModel load_model(const std::filesystem::path& folder) {
  const std::filesystem::path config_file = folder / kConfigFile;
  if (!std::filesystem::is_directory(folder)) {
    throw ConfigError(
        concat(folder.string(),
               " is not a folder; a model is a Hugging Face folder with config.json and "
               "model.safetensors"));
  }
  LoadedModel loaded;
  loaded.model =
      std::make_unique<DecoderLM>(parse_config(read_file(config_file), config_file.string()));
  loaded.format = load_weights(*loaded.model, folder, /*may_lack_new=*/false);
  return loaded;
}

void save_model(const DecoderLM& model,
                const SourceFormat& format,
                const std::filesystem::path& folder) {
  const torch::NoGradGuard no_grad;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw WriteError(concat(folder.string(), ": cannot create: ", error.message()));
  std::vector<Tensor> keep_alive;
  std::vector<TensorView> views;
  for (const Parameter& parameter : model.parameters().all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      std::string name = piece.name;
      if (name.starts_with(format.name_prefix_removed))
        name.erase(0, format.name_prefix_removed.size());
      const auto stored = format.dtypes.find(name);
      const DType dtype = stored == format.dtypes.end() ? DType::f32 : stored->second;
      const Tensor value =
          parameter.piece_value(piece).to(torch::kCPU, scalar_type(dtype, name)).contiguous();
      keep_alive.push_back(value);
      views.push_back({name,
                       dtype,
                       value.sizes().vec(),
                       static_cast<const std::byte*>(value.data_ptr()),
                       value.nbytes()});
    }
  }
  const Metadata metadata = format.metadata.empty() ? Metadata{{"format", "pt"}} : format.metadata;
  write_model_weights(folder, views, metadata, kMaxShardBytes);
  write_file_durably(folder / kConfigFile, write_config(model.config(), format.config_json));
}

}  // namespace t2r::model
