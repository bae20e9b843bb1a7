#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

/// What the GPU benchmarks share: times of CUDA-graph replays, and what the machine can do at best.
namespace t2r::launch {

/// Microseconds of `body` on the device: median of 15 measurements of 5 runs.
double microseconds(const std::function<void()>& body);

/// Microseconds of one call, from replays of a CUDA graph of call(0), ..., call(sets - 1): as many
/// inputs as do not fit the L2 cache.
double replay_microseconds(int sets, const std::function<std::vector<at::Tensor>(int)>& call);

using Attention =
    std::function<at::Tensor(const std::vector<at::Tensor>&)>;  // q, k, v, weight, bias -> o

/// Likewise of an attention on each of `inputs`, forward, or forward and backward.
double attention_microseconds(const Attention& attention,
                              std::vector<std::vector<at::Tensor>> inputs,
                              bool backward);

/// How many sets of inputs of `bytes` each do not fit the L2 cache, 2 to 64.
int sets_beyond_cache(double bytes);

struct Ceilings {
  double bytes_per_us, flops_per_us;
};

/// The rates of a device-to-device copy (read + write) and of a bfloat16 product.
Ceilings measure_ceilings();

template <class Shape>
std::vector<Shape> parse_all(const std::vector<std::string>& texts,
                             Shape (*parse)(const std::string&)) {
  std::vector<Shape> shapes;
  for (const std::string& text : texts) shapes.push_back(parse(text));
  return shapes;
}

/// Prints a table.
using Table = std::function<void(const Ceilings&)>;

/// The decode step; shapes are BATCHxHEADSxHEADSIZExFEATURES.
/// @throws UsageError  if one is not
Table decode_table(const std::vector<std::string>& shapes);

/// Cross-attention beside torch's softmax without a mask; shapes are
/// BATCHxLENGTHxSOURCExHEADSxHEADSIZExFEATURES.
/// @throws UsageError  if one is not
Table cross_table(const std::vector<std::string>& shapes);

}  // namespace t2r::launch
