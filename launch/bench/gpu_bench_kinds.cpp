// t2r bench attention --kind decode, --kind cross.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdio>

#include "base/error.h"
#include "launch/bench/gpu_bench_timing.h"
#include "model/ops/cross_op.h"
#include "model/ops/decode_op.h"

namespace t2r::launch {
namespace {

using at::Tensor;

at::TensorOptions bf16() {
  return at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
}
Tensor random(at::IntArrayRef sizes) {
  return at::randn(sizes, bf16());
}

struct Map {
  Tensor weight, bias;

  Map(int64_t heads, int64_t features, int64_t head_size)
      : weight(random({heads, features, head_size}) / std::sqrt(double(head_size))),
        bias(random({heads, features}).abs() * 0.1 + 0.05) {}
};

struct DecodeShape {
  int64_t batch, heads, head_size, features;

  double state_bytes() const { return 4.0 * double(batch * heads * features * (head_size + 1)); }
  /// The state is read and written, q, k, v read and o written; the map is read once.
  double bytes() const {
    return 2 * state_bytes() + 8.0 * double(batch * heads * head_size) +
           2.0 * double(heads * features * (head_size + 1));
  }
};

DecodeShape parse_decode(const std::string& text) {
  DecodeShape s{};
  int end = 0;
  if (std::sscanf(
          text.c_str(), "%ldx%ldx%ldx%ld%n", &s.batch, &s.heads, &s.head_size, &s.features, &end) !=
          4 ||
      end != static_cast<int>(text.size())) {
    throw UsageError(concat(
        "shape is \"", text, "\", allowed: BATCHxHEADSxHEADSIZExFEATURES, e.g. 128x16x64x32"));
  }
  return s;
}

double decode_time(const DecodeShape& shape) {
  const Map map(shape.heads, shape.features, shape.head_size);
  std::vector<ops::DecodeInputs> inputs;
  for (int i = 0; i < sets_beyond_cache(shape.state_bytes()); ++i) {
    const auto token = [&] { return random({shape.batch, shape.heads, shape.head_size}); };
    const auto state = at::TensorOptions(at::kCUDA).dtype(at::kFloat);
    inputs.push_back(
        {.q_BHd = token(),
         .k_BHd = token(),
         .v_BHd = token(),
         .weight_MKd = map.weight,
         .bias_MK = map.bias,
         .s_BHKd = at::randn({shape.batch, shape.heads, shape.features, shape.head_size}, state),
         .z_BHK = at::rand({shape.batch, shape.heads, shape.features}, state).add_(1.0)});
  }
  return replay_microseconds(static_cast<int>(inputs.size()), [&](int i) -> std::vector<Tensor> {
    return {ops::decode_step(inputs[i])};
  });
}

struct CrossShape {
  int64_t batch, length, source, heads, head_size, features;

  double bytes(bool backward) const {  // q, k, v, o; then q, k, v, d o and the gradients of q, k, v
    const double queries = double(length), sources = double(source);
    return 2.0 * double(batch * heads * head_size) *
           (2 * queries + 2 * sources + (backward ? 3 * queries + 4 * sources : 0.0));
  }
};

CrossShape parse_cross(const std::string& text) {
  CrossShape s{};
  int end = 0;
  if (std::sscanf(text.c_str(),
                  "%ldx%ldx%ldx%ldx%ldx%ld%n",
                  &s.batch,
                  &s.length,
                  &s.source,
                  &s.heads,
                  &s.head_size,
                  &s.features,
                  &end) != 6 ||
      end != static_cast<int>(text.size())) {
    throw UsageError(concat(
        "shape is \"",
        text,
        "\", allowed: BATCHxLENGTHxSOURCExHEADSxHEADSIZExFEATURES, e.g. 128x32x32x16x64x32"));
  }
  return s;
}

Tensor ours(const std::vector<Tensor>& in) {
  return ops::cross(
      {.q_BTHd = in[0], .k_BSHd = in[1], .v_BSHd = in[2], .weight_MKd = in[3], .bias_MK = in[4]});
}

Tensor heads_first(const Tensor& tensor) {
  return tensor.transpose(1, 2);
}

Tensor cudnn_softmax(const std::vector<Tensor>& in) {
  return std::get<0>(at::_scaled_dot_product_cudnn_attention(
                         heads_first(in[0]), heads_first(in[1]), heads_first(in[2]), {}, true))
      .transpose(1, 2);
}

Tensor flash_softmax(const std::vector<Tensor>& in) {
  return std::get<0>(at::_scaled_dot_product_flash_attention(
                         heads_first(in[0]), heads_first(in[1]), heads_first(in[2])))
      .transpose(1, 2);
}

double cross_time(const Attention& attention, const CrossShape& shape, bool backward) {
  const Map map(shape.heads, shape.features, shape.head_size);
  std::vector<std::vector<Tensor>> inputs;
  for (int i = 0; i < std::min(sets_beyond_cache(shape.bytes(false)), 16); ++i) {
    const auto tokens = [&](int64_t length) {
      return random({shape.batch, length, shape.heads, shape.head_size});
    };
    inputs.push_back({tokens(shape.length),
                      tokens(shape.source),
                      tokens(shape.source),
                      map.weight.clone(),
                      map.bias.clone()});
  }
  return attention_microseconds(attention, std::move(inputs), backward);
}

void print_decode(const std::vector<DecodeShape>& shapes, const Ceilings& ceilings) {
  std::printf(
      "| decode step, B x H x d x k | us | floor us | of floor | state read + written "
      "|\n|---|--:|--:|--:|--:|\n");
  for (const DecodeShape& shape : shapes) {
    const double us = decode_time(shape), floor = shape.bytes() / ceilings.bytes_per_us;
    std::printf("| %ld x %ld x %ld x %ld | %.1f | %.1f | %.0f %% | %.1f MB |\n",
                shape.batch,
                shape.heads,
                shape.head_size,
                shape.features,
                us,
                floor,
                100 * floor / us,
                2 * shape.state_bytes() / 1e6);
    std::fflush(stdout);
  }
}

void print_cross(const std::vector<CrossShape>& shapes, const Ceilings& ceilings) {
  std::printf(
      "| cross, B x T x S x H x d x k | attention | forward us | of floor | forward + backward us "
      "| of floor |\n|---|---|--:|--:|--:|--:|\n");
  const std::vector<std::pair<const char*, Attention>> peers{
      {"t2r", ours}, {"cuDNN softmax", cudnn_softmax}, {"flash softmax", flash_softmax}};
  for (const CrossShape& shape : shapes) {
    for (const auto& [name, attention] : peers) {
      std::printf("| %ld x %ld x %ld x %ld x %ld x %ld | %s ",
                  shape.batch,
                  shape.length,
                  shape.source,
                  shape.heads,
                  shape.head_size,
                  shape.features,
                  name);
      try {
        for (const bool backward : {false, true}) {
          const double us = cross_time(attention, shape, backward);
          std::printf(
              "| %.1f | %.0f %% ", us, 100 * shape.bytes(backward) / ceilings.bytes_per_us / us);
        }
        std::printf("|\n");
      } catch (const c10::Error& error) {
        std::printf("| cannot: %s |\n", error.what_without_backtrace());
        if (name == peers.front().first) throw;
      }
      std::fflush(stdout);
    }
  }
}

}  // namespace

Table decode_table(const std::vector<std::string>& shapes) {
  return [parsed = parse_all(shapes, parse_decode)](const Ceilings& ceilings) {
    print_decode(parsed, ceilings);
  };
}

Table cross_table(const std::vector<std::string>& shapes) {
  return [parsed = parse_all(shapes, parse_cross)](const Ceilings& ceilings) {
    print_cross(parsed, ceilings);
  };
}

}  // namespace t2r::launch
