#include "launch/checkpoints/optimizer_parts.h"

#include <cstring>

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
  const Tensor first = shard.of(optimizer.first_moment()).cpu(),
               second = shard.of(optimizer.second_moment()).cpu();
  model::write_safetensors(
      folder / optimizer_part(rank, shards.num_ranks()),
      {view_of("first_moment", first), view_of("second_moment", second)},
      {{"begin", std::to_string(shard.begin)}, {"end", std::to_string(shard.end)}});
}

void read_optimizer_part(const fs::path& folder,
                         model::AdamW& optimizer,
                         const dist::ShardPlan& shards,
                         int rank) {
  const fs::path file = folder / optimizer_part(rank, shards.num_ranks());
  const model::SafetensorsFile part(file);
  const dist::Shard shard = shards.of(rank);
  for (const auto& [name, moment] : {std::pair{"first_moment", optimizer.first_moment()},
                                     std::pair{"second_moment", optimizer.second_moment()}}) {
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
    shard.of(moment).copy_(host);
  }
}

}  // namespace t2r::launch
