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

// Elements of the arena that rank `rank` writes.
std::pair<int64_t, int64_t> share(int64_t size, int rank, int world) {
  return {size * rank / world, size * (rank + 1) / world};
}

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
                          int rank,
                          int world) {
  const auto [begin, end] = share(optimizer.first_moment().numel(), rank, world);
  const Tensor first = optimizer.first_moment().narrow(0, begin, end - begin).cpu(),
               second = optimizer.second_moment().narrow(0, begin, end - begin).cpu();
  model::write_safetensors(folder / optimizer_part(rank, world),
                           {view_of("first_moment", first), view_of("second_moment", second)},
                           {{"begin", std::to_string(begin)}, {"end", std::to_string(end)}});
}

void read_optimizer_part(const fs::path& folder, model::AdamW& optimizer, int rank, int world) {
  const fs::path file = folder / optimizer_part(rank, world);
  const model::SafetensorsFile part(file);
  const auto [begin, end] = share(optimizer.first_moment().numel(), rank, world);
  for (const auto& [name, moment] : {std::pair{"first_moment", optimizer.first_moment()},
                                     std::pair{"second_moment", optimizer.second_moment()}}) {
    const TensorView& view = part.at(name);
    if (view.dtype != DType::f32 || view.shape != std::vector<int64_t>{end - begin}) {
      throw DataError(concat(file.string(),
                             ": ",
                             name,
                             " does not fit this model: ",
                             model::shape_text(view.shape),
                             " elements, wanted ",
                             end - begin));
    }
    Tensor host = torch::empty({end - begin}, torch::kFloat32);
    std::memcpy(host.data_ptr<float>(), view.data, view.num_bytes);
    moment.narrow(0, begin, end - begin).copy_(host);
  }
}

}  // namespace t2r::launch
