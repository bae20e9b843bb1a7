#include "launch/checkpoints/optimizer_parts.h"

#include <cstring>
#include <vector>

#include "base/error.h"
#include "launch/checkpoints/checkpoint_manifest.h"
#include "model/files/safetensors.h"

namespace t2r::launch {
namespace {

namespace fs = std::filesystem;
using model::DType;
using model::TensorView;
using torch::Tensor;

TensorView view_of(const std::string& name, const Tensor& tensor) {
  return {name,
          DType::f32,
          tensor.sizes().vec(),
          static_cast<const std::byte*>(tensor.data_ptr()),
          tensor.nbytes()};
}

}  // namespace

void write_optimizer_part(const fs::path& folder,
                          const model::AdamW& optimizer,
                          const dist::ShardPlan& shards,
                          int rank) {
  const dist::Shard shard = shards.of(rank);
  std::vector<Tensor> values;
  std::vector<TensorView> views;
  for (const model::AdamW::State& state : optimizer.state()) {
    values.push_back(shard.of(state.values).cpu());
    views.push_back(view_of(state.name, values.back()));
  }
  model::write_safetensors(
      folder / optimizer_part(rank, shards.num_ranks()),
      views,
      {{"begin", std::to_string(shard.begin)}, {"end", std::to_string(shard.end)}});
}

void read_optimizer_part(const fs::path& folder,
                         model::AdamW& optimizer,
                         const dist::ShardPlan& shards,
                         int rank) {
  const fs::path file = folder / optimizer_part(rank, shards.num_ranks());
  const model::SafetensorsFile part(file);
  const dist::Shard shard = shards.of(rank);
  for (const auto& [name, values] : optimizer.state()) {
    const TensorView& view = part.at(name);
    if (view.dtype != DType::f32 || view.shape != std::vector<int64_t>{shard.numel()}) {
      throw DataError(concat(file.string(),
                             ": ",
                             name,
                             " does not fit this model: ",
                             model::shape_text(view.shape),
                             " elements, wanted ",
                             shard.numel()));
    }
    Tensor host = torch::empty({shard.numel()}, torch::kFloat32);
    std::memcpy(host.data_ptr<float>(), view.data, view.num_bytes);
    shard.of(values).copy_(host);
  }
}

}  // namespace t2r::launch
