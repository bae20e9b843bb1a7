#include "model/files/hugging_face.h"

#include <algorithm>
#include <vector>

#include "base/durable_file.h"
#include "base/error.h"
#include "model/files/model_source.h"
#include "model/files/safetensors_index.h"

namespace t2r::model {
namespace {

using torch::Tensor;

constexpr uint64_t kMaxShardBytes = uint64_t{5} << 30;  // as transformers' save_pretrained

/// Tensors of a file to be, with the memory that they point into.
class Tensors {
 public:
  void add(TensorView view) { views_.push_back(std::move(view)); }

  void add(const std::string& name, const Tensor& value, DType dtype) {
    memory_.push_back(value.to(torch::kCPU, scalar_type(dtype).value()).contiguous());
    const Tensor& kept = memory_.back();
    add({name,
         dtype,
         kept.sizes().vec(),
         static_cast<const std::byte*>(kept.data_ptr()),
         kept.nbytes()});
  }

  const std::vector<TensorView>& views() const { return views_; }

 private:
  std::vector<TensorView> views_;
  std::vector<Tensor> memory_;
};

DType dtype_of(const SourceFormat& format, const std::string& name) {
  const auto stored = format.dtypes.find(name);
  return stored == format.dtypes.end() ? DType::f32 : stored->second;
}

/// The type of most of the model's scalars: what config.json says of all.
DType main_dtype(const Trainable& model, const SourceFormat& format) {
  std::map<DType, int64_t> scalars;
  for (const Parameter& parameter : model.parameters().all())
    for (const ParameterPiece& piece : parameter.pieces)
      scalars[dtype_of(format, piece.name)] += parameter.piece_value(piece).numel();
  return std::ranges::max_element(scalars, {}, [](const auto& entry) { return entry.second; })
      ->first;
}

void write_folder(const Trainable& model,
                  const Tensors& tensors,
                  const SourceFormat& format,
                  const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw WriteError(concat(folder.string(), ": cannot create: ", error.message()));
  const Metadata metadata = format.metadata.empty() ? Metadata{{"format", "pt"}} : format.metadata;
  write_model_weights(folder, tensors.views(), metadata, kMaxShardBytes);
  write_file_durably(folder / kConfigFile,
                     write_config(model.config(), format.config_json, main_dtype(model, format)));
}

std::string without_prefix(const std::string& name, const std::string& prefix) {
  return name.starts_with(prefix) ? name.substr(prefix.size()) : name;
}

}  // namespace

SourceFormat load_weights(Trainable& model,
                          const std::filesystem::path& folder,
                          bool may_lack_new) {
  const ModelSource source(folder);
  source.check_fits(model, may_lack_new);
  source.copy_to(model);
  return source.format();
}

LoadedModel load_model(const std::filesystem::path& folder) {
  const ModelSource source(folder);
  source.check_fits(DecoderLM(source.config(), torch::kMeta), /*may_lack_new=*/false);
  LoadedModel loaded;
  loaded.model = std::make_unique<DecoderLM>(source.config());
  source.copy_to(*loaded.model);
  loaded.format = source.format();
  return loaded;
}

void save_model(const Trainable& model,
                const SourceFormat& format,
                const std::filesystem::path& folder) {
  const torch::NoGradGuard no_grad;
  Tensors tensors;
  for (const Parameter& parameter : model.parameters().all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      tensors.add(without_prefix(piece.name, format.name_prefix_removed),
                  parameter.piece_value(piece),
                  dtype_of(format, piece.name));
    }
  }
  write_folder(model, tensors, format, folder);
}

void save_converted(const Trainable& model,
                    const ModelSource& source,
                    const std::filesystem::path& folder) {
  const torch::NoGradGuard no_grad;
  Tensors tensors;
  for (const auto& [name, view] : source.named().tensors) {
    TensorView renamed = *view;
    renamed.name = source.named().file_name(name);
    tensors.add(std::move(renamed));
  }
  for (const Parameter& parameter : model.parameters().all()) {
    for (const ParameterPiece& piece : parameter.pieces) {
      if (piece.is_new)
        tensors.add(source.named().file_name(piece.name), parameter.piece_value(piece), DType::f32);
    }
  }
  write_folder(model, tensors, source.format(), folder);
}

}  // namespace t2r::model
