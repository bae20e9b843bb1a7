// t2r bench attention: our attention beside what a user would run otherwise, in one process on one
// GPU. A program of its own, so that every other command starts without loading CUDA; `t2r bench`
// becomes it.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdio>
#include <functional>

#include "base/error.h"
#include "launch/bench/gpu_bench_timing.h"
#include "launch/options/options.h"
#include "model/ops/causal_op.h"

namespace t2r::launch {
namespace {

using at::Tensor;

struct Shape {
  int64_t batch, length, heads, head_size, features;

  int64_t tokens() const { return batch * length * heads; }
};

/// B x T x H x d x k, e.g. 8x2048x16x64x32.
Shape parse_shape(const std::string& text) {
  Shape shape{};
  int end = 0;
  if (std::sscanf(text.c_str(),
                  "%ldx%ldx%ldx%ldx%ld%n",
                  &shape.batch,
                  &shape.length,
                  &shape.heads,
                  &shape.head_size,
                  &shape.features,
                  &end) != 5 ||
      end != static_cast<int>(text.size())) {
    throw UsageError(
        concat("shape is \"",
               text,
               "\", allowed: BATCHxLENGTHxHEADSxHEADSIZExFEATURES, e.g. 8x2048x16x64x32"));
  }
  return shape;
}

/// The least time that a fused kernel can take, in microseconds (docs/kernels.md): bytes over
/// bandwidth or operations over rate.
double floor_of(const Shape& shape, bool backward, bool softmax, const Ceilings& ceilings) {
  const double n = static_cast<double>(shape.tokens()), d = static_cast<double>(shape.head_size),
               k = static_cast<double>(shape.features);
  const double softmax_flops = 2.0 * n * static_cast<double>(shape.length) * d;
  const double forward =
      std::max(n * 8 * d / ceilings.bytes_per_us,
               (softmax ? softmax_flops : n * (8 * d * k + 128 * (k + d))) / ceilings.flops_per_us);
  if (!backward) return forward;
  const double bytes = n * (softmax ? 16 * d : 14 * d + 4);
  return forward +
         std::max(bytes / ceilings.bytes_per_us,
                  (softmax ? 2.5 * softmax_flops : n * (22 * d * k + 64 * (6 * k + 4 * d))) /
                      ceilings.flops_per_us);
}

Tensor features(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return at::relu(at::einsum("bthd,hkd->bthk", {x, weight}).add(bias));
}

Tensor ours(const std::vector<Tensor>& in) {
  return ops::causal({.q_BTHd = in[0],
                      .k_BTHd = in[1],
                      .v_BTHd = in[2],
                      .weight_MKd = in[3],
                      .bias_MK = in[4]})
      .o_BTHd;
}

Tensor softmax(const std::vector<Tensor>& in) {
  const auto heads_first = [](const Tensor& tensor) { return tensor.transpose(1, 2); };
  const auto out = at::_scaled_dot_product_cudnn_attention(
      heads_first(in[0]), heads_first(in[1]), heads_first(in[2]), {}, true, 0.0, true);
  return std::get<0>(out).transpose(1, 2);
}

/// The same function by LibTorch's own operations: chunks of 64, batched products, states by a
/// running sum.
Tensor chunked(const std::vector<Tensor>& in) {
  constexpr int64_t kChunk = 64;
  const int64_t batch = in[0].size(0), length = in[0].size(1), heads = in[0].size(2),
                chunks = (length + kChunk - 1) / kChunk;
  const auto split = [&](const Tensor& tensor) {
    return at::constant_pad_nd(tensor, {0, 0, 0, 0, 0, chunks * kChunk - length})
        .view({batch, chunks, kChunk, heads, -1})
        .permute({0, 3, 1, 2, 4});
  };
  const Tensor q = split(features(in[0], in[3], in[4])), k = split(features(in[1], in[3], in[4])),
               v = split(in[2]);
  const auto before = [](const Tensor& sums) {  // the sum of all earlier chunks
    const Tensor running = sums.cumsum(2).slice(2, 0, sums.size(2) - 1);
    return at::cat({at::zeros_like(sums.slice(2, 0, 1)), running}, 2);
  };
  const Tensor s = before(at::matmul(k.transpose(-1, -2), v).to(at::kFloat)),
               z = before(k.to(at::kFloat).sum(-2));
  const Tensor weights = at::matmul(q, k.transpose(-1, -2)).tril();
  const Tensor num =
      at::matmul(weights, v).to(at::kFloat) + at::matmul(q, s.to(q.scalar_type())).to(at::kFloat);
  const Tensor den =
      weights.to(at::kFloat).sum(-1) + at::matmul(q.to(at::kFloat), z.unsqueeze(-1)).squeeze(-1);
  const Tensor o = num / den.clamp_min(0.01).unsqueeze(-1);
  return o.permute({0, 2, 3, 1, 4})
      .reshape({batch, chunks * kChunk, heads, -1})
      .slice(1, 0, length)
      .to(in[2].scalar_type());
}

std::vector<Tensor> make_inputs(const Shape& shape, int64_t batch, int64_t length) {
  const auto options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, options); };
  const std::vector<int64_t> sizes{batch, length, shape.heads, shape.head_size};
  return {
      random(sizes),
      random(sizes),
      random(sizes),
      random({shape.heads, shape.features, shape.head_size}) / std::sqrt(double(shape.head_size)),
      random({shape.heads, shape.features}).abs() * 0.1 + 0.05};
}

/// |o - exact| / |exact| at a length that the exact answer in float64 can be had for.
double error_of(const Attention& attention, const Shape& shape) {
  const auto in = make_inputs(shape, 1, std::min<int64_t>(shape.length, 2048));
  std::vector<Tensor> exact;
  for (const Tensor& tensor : in) exact.push_back(tensor.to(at::kDouble));
  const Tensor scores =
      at::einsum("bthk,bshk->bhts",
                 {features(exact[0], exact[3], exact[4]), features(exact[1], exact[3], exact[4])})
          .tril();
  const Tensor wanted = at::einsum("bhts,bshd->bthd", {scores, exact[2]}) /
                        scores.sum(-1).transpose(1, 2).clamp_min(0.01).unsqueeze(-1);
  return ((attention(in).to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

/// Microseconds of one call, from replays of a CUDA graph that calls it on as many inputs as do not
/// fit the L2 cache.
double time_of(const Attention& attention, const Shape& shape, bool backward) {
  const double bytes =
      static_cast<double>(shape.tokens()) * static_cast<double>(shape.head_size) * 8;
  const int sets = std::min(sets_beyond_cache(bytes), 16);
  std::vector<std::vector<Tensor>> inputs;
  for (int i = 0; i < sets; ++i) inputs.push_back(make_inputs(shape, shape.batch, shape.length));
  return attention_microseconds(attention, std::move(inputs), backward);
}

constexpr double kLargestError = 1e-2;  // against float64, in bfloat16

void print_causal(const std::vector<Shape>& shapes, const Ceilings& ceilings) {
  std::printf(
      "| B x T x H x d x k | attention | forward us | of floor | forward + backward us | of floor "
      "| error of o |\n|---|---|--:|--:|--:|--:|--:|\n");
  const std::vector<std::pair<const char*, Attention>> peers{
      {"t2r", ours}, {"cuDNN softmax", softmax}, {"LibTorch chunked T2R", chunked}};
  for (const Shape& shape : shapes) {
    for (const auto& [name, attention] : peers) {
      const bool is_softmax = name == peers[1].first;
      std::printf("| %ld x %ld x %ld x %ld x %ld | %s ",
                  shape.batch,
                  shape.length,
                  shape.heads,
                  shape.head_size,
                  shape.features,
                  name);
      try {
        for (const bool backward : {false, true}) {
          const double us = time_of(attention, shape, backward);
          std::printf(
              "| %.1f | %.0f %% ", us, 100 * floor_of(shape, backward, is_softmax, ceilings) / us);
        }
        if (is_softmax) {
          std::printf("| |\n");
        } else {
          const double error = error_of(attention, shape);
          std::printf("| %.1e |\n", error);
          if (name == peers.front().first && !(error <= kLargestError))
            throw NumericError(concat("t2r: error of o ", error, ", allowed: ", kLargestError));
        }
      } catch (const c10::Error& error) {
        std::printf("| cannot: %s |\n", error.what_without_backtrace());
        if (name == peers.front().first) throw;
      }
      std::fflush(stdout);
    }
  }
}

Table causal_table(const std::vector<std::string>& shapes) {
  return [parsed = parse_all(shapes, parse_shape)](const Ceilings& ceilings) {
    print_causal(parsed, ceilings);
  };
}

/// What can be timed: how its shapes become a table, and the shapes of docs/results/gpu.md.
struct Kind {
  std::string name;
  Table (*table)(const std::vector<std::string>& shapes);
  std::vector<std::string> shapes;
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all{
      {"causal",
       causal_table,
       {"8x512x16x64x32",
        "8x2048x16x64x32",
        "8x8192x16x64x32",
        "8x2048x16x128x64",
        "1x32768x16x64x32"}},
      {"decode",
       decode_table,
       {"1x12x64x32", "16x12x64x32", "128x16x64x32", "512x16x64x32", "128x16x128x64"}},
      {"cross",
       cross_table,
       {"128x32x32x16x64x32", "32x64x64x16x64x32", "16x512x512x16x64x32", "4x2048x2048x16x64x32"}}};
  return all;
}

int bench_attention(const std::vector<std::string>& arguments) {
  std::string name = kinds().front().name;
  std::vector<std::string> shapes;
  OptionSet options(
      "bench attention",
      "Time attention on this GPU: ours, softmax, for causal attention LibTorch's operations");
  std::vector<std::string> names;
  for (const Kind& kind : kinds()) names.push_back(kind.name);
  options.add_choice("kind", name, names, "causal attention, the decode step, or cross-attention");
  options.add("shapes",
              shapes,
              "several after each other; causal: BATCHxLENGTHxHEADSxHEADSIZExFEATURES, decode: "
              "without LENGTH, cross: SOURCE behind LENGTH; "
              "none: those of docs/results/gpu.md");
  if (options.parse(arguments) == OptionSet::Outcome::kDone) return 0;
  const Kind& kind = *std::find_if(kinds().begin(), kinds().end(), [&](const Kind& candidate) {
    return candidate.name == name;
  });
  const Table table = kind.table(shapes.empty() ? kind.shapes : shapes);
  if (at::cuda::getNumGPUs() == 0)
    throw ConfigError("bench attention needs a GPU; this machine has none that CUDA can use");

  const Ceilings ceilings = measure_ceilings();
  std::printf(
      "%s: copy %.2f TB/s (read + write), bf16 product %.0f TFLOP/s; bf16, CUDA-graph replays, "
      "median\n\n",
      at::cuda::getCurrentDeviceProperties()->name,
      ceilings.bytes_per_us / 1e6,
      ceilings.flops_per_us / 1e6);
  table(ceilings);
  return 0;
}

}  // namespace
}  // namespace t2r::launch

int main(int argc, char** argv) {
  try {
    return t2r::launch::bench_attention({argv + 1, argv + argc});
  } catch (const t2r::Error& error) {
    std::fprintf(stderr, "t2r: %s\n", error.what());
    return static_cast<int>(error.exit_code());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "t2r: %s\n", error.what());
    return 70;
  }
}
