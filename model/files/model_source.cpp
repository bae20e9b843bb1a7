#include "model/files/model_source.h"

#include <cmath>
#include <cstring>
#include <set>

#include "base/durable_file.h"
#include "base/error.h"
#include "base/folder_manifest.h"
#include "base/log.h"
#include "base/quoted_name.h"
#include "model/files/generation_defaults.h"
#include "model/files/model_folder.h"

namespace t2r::model {
namespace {

using torch::Tensor;

constexpr const char* kHead = "lm_head.weight";

/// Compares what makes the model, and what lies beside it for tokenizers and generation, with the
/// folder's manifest. A checkpoint's optimizer is not read, and a tokenizer may be another's.
void verify_files(const std::filesystem::path& folder) {
  verify_listed_files(
      folder,
      [](const std::string& name) {
        return !name.ends_with(".safetensors") || name.starts_with("model");
      },
      [](const std::string& name) { return name == kGenerationConfigFile; });
}

std::string read_config(const std::filesystem::path& folder) {
  check_model_folder(folder);
  verify_files(folder);
  return read_file(folder / kConfigFile);
}

/// The view's elements as float32; it holds floating-point numbers.
Tensor values_of(const TensorView& view) {
  // A copy of the bytes first: the file may place elements at any address.
  Tensor bytes = torch::empty({static_cast<int64_t>(view.num_bytes)}, torch::kUInt8);
  std::memcpy(bytes.data_ptr(), view.data, view.num_bytes);
  return bytes.view(*scalar_type(view.dtype)).view(view.shape).to(torch::kFloat32);
}

bool are_equal(const TensorView& a, const TensorView& b) {
  if (a.shape != b.shape || !scalar_type(a.dtype) || !scalar_type(b.dtype)) return false;
  return values_of(a).equal(values_of(b));
}

/// The config as the weights are: untied where they hold a head that differs from the embedding.
DecoderConfig as_the_weights(DecoderConfig config,
                             const NamedWeights& named,
                             const std::string& folder) {
  const TensorView* embedding = named.find(config.names.token_table());
  const TensorView* head = named.find(kHead);
  if (!config.tied_embeddings || embedding == nullptr || head == nullptr ||
      are_equal(*embedding, *head))
    return config;
  config.tied_embeddings = false;
  log::info(concat(folder,
                   ": config.json ties lm_head.weight to ",
                   config.names.token_table(),
                   ", but both are there and differ: they are not tied, as in transformers 5"));
  return config;
}

void refuse_dtype(const TensorView& view, const std::string& folder) {
  const std::string_view type = dtype_name(view.dtype);
  const bool is_integer = type.starts_with('I') || type.starts_with('U');
  throw DataError(concat(folder,
                         ": tensor ",
                         quoted_name(view.name),
                         " has type ",
                         type,
                         is_integer || type.starts_with('F') ? " (quantized weights?)" : "",
                         ", allowed: F32, F16, BF16, F64; take the model that this one was made "
                         "from"));
}

}  // namespace

std::optional<torch::ScalarType> scalar_type(DType dtype) {
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
      return std::nullopt;
  }
}

ModelSource::ModelSource(const std::filesystem::path& folder)
    : folder_(folder.string()),
      config_json_(read_config(folder)),
      config_(parse_config(config_json_, (folder / kConfigFile).string())),
      weights_(open_model_weights(folder)),
      named_(name_weights(weights_, config_.names, folder_)) {
  config_ = as_the_weights(std::move(config_), named_, folder_);
  if (!named_.wrapper_removed.empty())
    log::info(concat(folder_,
                     ": names of tensors hold ",
                     named_.wrapper_removed,
                     " (a compiled or wrapped model was saved); they are read without it"));
}

const TensorView* ModelSource::find(const ParameterPiece& piece) const {
  const TensorView* view = named_.find(piece.name);
  // A tied model may be stored under either name.
  const bool is_embedding = piece.name == config_.names.token_table();
  return view == nullptr && is_embedding && config_.tied_embeddings ? named_.find(kHead) : view;
}

bool ModelSource::is_known_beside(const std::string& name, const DecoderConfig& config) const {
  return is_buffer(name) || (name == kHead && config.tied_embeddings && config_.tied_embeddings);
}

void ModelSource::check_fits(const Trainable& model, bool may_lack_new) const {
  std::set<std::string_view> known;
  for (const Parameter& parameter : model.parameters().all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      known.insert(piece.name);
      const TensorView* view = find(piece);
      if (view == nullptr) {
        if (piece.is_new && may_lack_new) continue;
        std::string why = piece.is_new ? " (a feature map: is this a converted model?)" : "";
        if (piece.name == kHead)
          why = concat(" (config.json does not tie it to ",
                       config_.names.token_table(),
                       ": these are the weights of a model without its head; save the whole one)");
        throw DataError(concat(
            folder_, ": tensor ", quoted_name(named_.file_name(piece.name)), " is missing", why));
      }
      if (!scalar_type(view->dtype)) refuse_dtype(*view, folder_);
      const std::vector<int64_t> wanted = parameter.piece_value(piece).sizes().vec();
      if (view->shape != wanted) {
        throw DataError(concat(folder_,
                               ": tensor ",
                               quoted_name(view->name),
                               " has shape ",
                               shape_text(view->shape),
                               ", the config asks for ",
                               shape_text(wanted)));
      }
    }
  }
  for (const auto& [name, view] : named_.tensors) {
    if (known.contains(name) || is_known_beside(name, model.config())) continue;
    if (name == kHead)
      throw DataError(concat(folder_,
                             ": tensor \"lm_head.weight\" differs from ",
                             config_.names.token_table(),
                             ", and the model ties them"));
    throw DataError(concat(folder_,
                           ": tensor ",
                           quoted_name(view->name),
                           " is not part of the model in ",
                           kConfigFile));
  }
}

void ModelSource::copy_to(Trainable& model) const {
  const torch::NoGradGuard no_grad;
  for (const Parameter& parameter : model.parameters().all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      const TensorView* view = find(piece);
      if (view == nullptr) continue;
      const Tensor values = values_of(*view);
      const auto [least, most] = values.aminmax();  // NaN if there is one
      if (!std::isfinite(least.item<float>()) || !std::isfinite(most.item<float>()))
        throw NumericError(concat(folder_,
                                  ": tensor ",
                                  quoted_name(view->name),
                                  " holds values that are not finite (NaN or infinity): the model "
                                  "is damaged or has diverged"));
      parameter.piece_value(piece).copy_(values);
    }
  }
}

SourceFormat ModelSource::format() const {
  SourceFormat format;
  format.config_json = config_json_;
  format.metadata = weights_.metadata();
  format.name_prefix_removed = named_.prefix_removed;
  for (const auto& [name, view] : named_.tensors) format.dtypes[name] = view->dtype;
  // A tied matrix that is stored as the head alone is the embedding, too.
  if (const TensorView* head = named_.find(kHead); head != nullptr && config_.tied_embeddings)
    format.dtypes.emplace(config_.names.token_table(), head->dtype);
  return format;
}

}  // namespace t2r::model
