// The optimizer's operators against float64 and against the CPU's AdamW.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "model/ops/optimizer_op.h"
#include "model/optim/adamw.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

using kernels::cuda::ControlSlot;
using test::message_of;
using test::relative_error;
using testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr AdamWSettings kSettings{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};

const auto kFloatOnGpu = at::TensorOptions(at::kCUDA).dtype(at::kFloat);

/// What the host tells the kernels about a step.
struct Host {
  double learning_rate = 1e-2, map_learning_rate = 3e-2, clip_norm = 0.0, loss_sum = 12.0,
         num_tokens = 64.0;

  void write(const Tensor& control) const {
    const Tensor five = at::tensor(
        {learning_rate, map_learning_rate, clip_norm, loss_sum, num_tokens}, at::kDouble);
    control.slice(0, 0, 5).copy_(five);
  }
};

double slot(const Tensor& control, ControlSlot which) {
  return control[which].item<double>();
}

/// A model whose slices begin anywhere: biases and norms between matrices, and two maps.
std::vector<ParameterSlice> make_slices(int64_t first = 0) {
  std::vector<ParameterSlice> slices;
  int64_t offset = first;
  const auto add = [&](int64_t numel, bool decays, bool is_map) {
    slices.push_back({offset, numel, decays, is_map});
    offset += numel;
  };
  add(7, false, false);
  add(40'001, true, false);
  add(1, false, true);
  add(3 * 16'384, true, true);
  add(2, true, false);
  add(16'385, false, false);
  add(768, false, true);
  return slices;
}

int64_t total_size(const std::vector<ParameterSlice>& slices) {
  return slices.back().offset + slices.back().numel;
}

struct Problem {
  AdamWTensors tensors;
  std::vector<ParameterSlice> slices;
};

/// `gradient_type`, and whether the model is a bfloat16 copy of the master.
Problem make_problem(at::ScalarType gradient_type, bool has_values, int64_t first = 0) {
  at::manual_seed(11);
  Problem p;
  p.slices = make_slices(first);
  const int64_t size = total_size(p.slices);
  p.tensors.master = at::randn({size}, kFloatOnGpu);
  if (has_values) p.tensors.values = p.tensors.master.to(at::kBFloat16);
  p.tensors.gradients = at::randn({size}, kFloatOnGpu).to(gradient_type);
  p.tensors.first_moment = at::zeros({size}, kFloatOnGpu);
  p.tensors.second_moment = at::zeros({size}, kFloatOnGpu);
  p.tensors.spans = make_spans(p.slices, at::kCUDA);
  p.tensors.control = make_control(at::kCUDA);
  return p;
}

void step(const Problem& p, const Host& host) {
  host.write(p.tensors.control);
  gradient_norm(p.tensors.gradients, p.tensors.control, kSettings.beta1, kSettings.beta2);
  adamw(p.tensors, kSettings);
}

/// AdamW in float64 with the decisions of HostStep::update_parameters().
class Oracle {
 public:
  explicit Oracle(const Problem& p)
      : slices_(p.slices),
        master(p.tensors.master.to(at::kDouble)),
        first(at::zeros_like(master)),
        second(at::zeros_like(master)) {}

  void step(const Tensor& gradients, const Host& host) {
    const Tensor exact = gradients.to(at::kDouble);
    norm = exact.norm().item<double>() / host.num_tokens;
    is_skipped = !std::isfinite(norm) || !std::isfinite(host.loss_sum);
    if (is_skipped) return;
    ++updates;
    const double clip = host.clip_norm > 0.0 && norm > host.clip_norm ? host.clip_norm / norm : 1.0;
    const double correction1 = 1.0 - std::pow(kSettings.beta1, updates),
                 correction2 = 1.0 - std::pow(kSettings.beta2, updates);
    for (const ParameterSlice& slice : slices_) {
      const auto part = [&](const Tensor& flat) {
        return flat.narrow(0, slice.offset, slice.numel);
      };
      const double rate = slice.is_map ? host.map_learning_rate : host.learning_rate;
      const Tensor gradient = part(exact) * (clip / host.num_tokens);
      part(first).mul_(kSettings.beta1).add_(gradient, 1.0 - kSettings.beta1);
      part(second).mul_(kSettings.beta2).add_(gradient * gradient, 1.0 - kSettings.beta2);
      part(master).mul_(1.0 - rate * (slice.decays ? kSettings.weight_decay : 0.0));
      part(master).sub_(part(first) * (rate / correction1) /
                        ((part(second) / correction2).sqrt() + kSettings.eps));
    }
  }

 private:
  std::vector<ParameterSlice> slices_;

 public:
  Tensor master, first, second;
  double norm = 0.0;
  int updates = 0;
  bool is_skipped = false;
};

TEST(GpuOptimizer, FiveStepsAgreeWithFloat64) {
  for (const auto& [gradient_type, has_values] : {std::pair{at::kBFloat16, true},
                                                  std::pair{at::kFloat, true},
                                                  std::pair{at::kFloat, false},
                                                  std::pair{at::kBFloat16, false}}) {
    for (const double clip_norm : {0.0, 1e-3, 1e6}) {  // none, always, never reached
      SCOPED_TRACE(testing::Message()
                   << gradient_type << (has_values ? " values" : "") << " clip " << clip_norm);
      Problem p = make_problem(gradient_type, has_values);
      Oracle oracle(p);
      for (int i = 0; i < 5; ++i) {
        const Host host{.learning_rate = 1e-2 / (i + 1),
                        .map_learning_rate = 3e-2,
                        .clip_norm = clip_norm,
                        .num_tokens = 64.0 + i};
        p.tensors.gradients.copy_(at::randn(p.tensors.gradients.sizes(), kFloatOnGpu));
        step(p, host);
        oracle.step(p.tensors.gradients, host);
        EXPECT_NEAR(
            slot(p.tensors.control, kernels::cuda::kGradientNorm) / oracle.norm, 1.0, 1e-12);
        EXPECT_EQ(slot(p.tensors.control, kernels::cuda::kNumUpdates), i + 1);
        EXPECT_EQ(slot(p.tensors.control, kernels::cuda::kIsSkipped), 0.0);
      }
      // Some roundings of float32 in each of five steps.
      EXPECT_LE(relative_error(p.tensors.master, oracle.master), 1e-6) << "master";
      // The moments are small where gradients are clipped: their own size counts, not that of
      // typical tensors.
      EXPECT_LE(
          ((p.tensors.first_moment - oracle.first).norm() / oracle.first.norm()).item<double>(),
          1e-6)
          << "first moment";
      EXPECT_LE(
          ((p.tensors.second_moment - oracle.second).norm() / oracle.second.norm()).item<double>(),
          1e-6)
          << "second moment";
      if (has_values) {
        EXPECT_TRUE(at::equal(*p.tensors.values, p.tensors.master.to(at::kBFloat16))) << "values";
      }
    }
  }
}

TEST(GpuOptimizer, EqualsTheAdamWOfTheCpu) {
  const std::vector<ParameterSlice> slices = make_slices();
  model::ParameterSet set;
  for (auto slice = slices.rbegin(); slice != slices.rend();
       ++slice) {  // an arena's order is the reverse
    set.add("parameter", {slice->numel}, 0, slice->decays);
    if (slice->is_map) set.mark_last_as_new();
  }
  for (model::Parameter& parameter : set.all()) parameter.value.detach().zero_();
  model::ParameterArena arena(set);
  const Problem p = make_problem(at::kFloat, false);
  ASSERT_EQ(arena.values().numel(), p.tensors.master.numel());
  arena.values().copy_(p.tensors.master);
  model::AdamW cpu(arena,
                   {.beta1 = kSettings.beta1,
                    .beta2 = kSettings.beta2,
                    .eps = kSettings.eps,
                    .weight_decay = kSettings.weight_decay});
  for (int i = 1; i <= 5; ++i) {
    const Host host{.clip_norm = 0.5};
    p.tensors.gradients.copy_(at::randn(p.tensors.gradients.sizes(), kFloatOnGpu));
    arena.gradients().copy_(p.tensors.gradients);
    step(p, host);
    const double norm = model::l2_norm(arena.gradients()) / host.num_tokens;
    EXPECT_NEAR(slot(p.tensors.control, kernels::cuda::kGradientNorm) / norm, 1.0, 1e-12);
    cpu.update({.number = i,
                .learning_rate = host.learning_rate,
                .map_learning_rate = host.map_learning_rate,
                .gradient_scale = std::min(1.0, host.clip_norm / norm) / host.num_tokens});
  }
  EXPECT_LE(relative_error(p.tensors.master.cpu(), arena.values()), 1e-6);
  EXPECT_LE(((p.tensors.first_moment.cpu() - cpu.first_moment()).norm() / cpu.first_moment().norm())
                .item<double>(),
            1e-6);
  EXPECT_LE(
      ((p.tensors.second_moment.cpu() - cpu.second_moment()).norm() / cpu.second_moment().norm())
          .item<double>(),
      1e-6);
}

TEST(GpuOptimizer, AStepThatIsNotFiniteIsSkipped) {
  for (const auto type : {at::kBFloat16, at::kFloat}) {
    const Problem p = make_problem(type, true);
    step(p, {});
    const Tensor master = p.tensors.master.clone(), values = p.tensors.values->clone(),
                 first = p.tensors.first_moment.clone();
    const auto expect_skipped = [&](const Host& host) {
      step(p, host);
      EXPECT_EQ(slot(p.tensors.control, kernels::cuda::kIsSkipped), 1.0);
      EXPECT_EQ(slot(p.tensors.control, kernels::cuda::kNumUpdates), 1.0);
      EXPECT_TRUE(at::equal(p.tensors.master, master) && at::equal(*p.tensors.values, values));
      EXPECT_TRUE(at::equal(p.tensors.first_moment, first));
    };
    expect_skipped({.loss_sum = kNaN});
    expect_skipped({.loss_sum = INFINITY});
    for (const int64_t at :
         {int64_t{0}, p.tensors.master.numel() / 2, p.tensors.master.numel() - 1}) {
      for (const double bad : {kNaN, double(INFINITY)}) {
        const Tensor good = p.tensors.gradients[at].clone();
        p.tensors.gradients[at].fill_(bad);
        expect_skipped({});
        p.tensors.gradients[at].copy_(good);
      }
    }
    step(p, {});
    EXPECT_EQ(slot(p.tensors.control, kernels::cuda::kIsSkipped), 0.0);
    EXPECT_EQ(slot(p.tensors.control, kernels::cuda::kNumUpdates), 2.0);
    EXPECT_FALSE(at::equal(p.tensors.master, master));
  }
}

// Memory that begins anywhere, also differently per tensor: whole vectors where all agree, else one
// by one.
TEST(GpuOptimizer, MemoryAndSpansMayBeginAnywhere) {
  for (const int64_t gap : {0, 1, 2, 3}) {
    for (const bool alike : {true, false}) {
      SCOPED_TRACE(testing::Message() << "gap " << gap << (alike ? " in all" : " in the moments"));
      Problem p = make_problem(at::kBFloat16, true, 5);
      const auto shifted = [&](const Tensor& flat, int64_t by) {
        return at::cat({at::zeros({by}, flat.options()), flat}).slice(0, by);
      };
      p.tensors.first_moment = shifted(p.tensors.first_moment, gap);
      p.tensors.second_moment = shifted(p.tensors.second_moment, gap);
      if (alike) {
        p.tensors.master = shifted(p.tensors.master, gap);
        p.tensors.values = shifted(*p.tensors.values, gap);
        p.tensors.gradients = shifted(p.tensors.gradients, gap);
      }
      Oracle oracle(p);
      for (int i = 0; i < 2; ++i) {
        step(p, {});
        oracle.step(p.tensors.gradients, {});
      }
      EXPECT_LE(relative_error(p.tensors.master, oracle.master), 1e-6);
      EXPECT_TRUE(
          at::equal(p.tensors.values->slice(0, 5), p.tensors.master.slice(0, 5).to(at::kBFloat16)));
      // What no span has stays as it is.
      EXPECT_TRUE(at::equal(p.tensors.first_moment.slice(0, 0, 5), at::zeros({5}, kFloatOnGpu)));
    }
  }
}

TEST(GpuOptimizer, SpansCoverEverySliceOnce) {
  const std::vector<ParameterSlice> slices = make_slices(3);
  const Tensor spans = make_spans(slices, at::kCPU);
  Tensor covered = at::zeros({total_size(slices)}, at::kLong), flags = at::zeros_like(covered);
  for (int64_t i = 0; i < spans.size(0); ++i) {
    const int64_t begin = spans[i][0].item<int64_t>(), end = spans[i][1].item<int64_t>();
    ASSERT_LT(begin, end);
    ASSERT_LE(end - begin, kSpanElements);
    covered.slice(0, begin, end).add_(1);
    flags.slice(0, begin, end).copy_(spans[i][2].expand({end - begin}));
  }
  EXPECT_TRUE(at::equal(covered.slice(0, 3), at::ones({total_size(slices) - 3}, at::kLong)));
  EXPECT_EQ(covered.slice(0, 0, 3).sum().item<int64_t>(), 0);
  for (const ParameterSlice& slice : slices) {
    const int64_t want = (slice.decays ? 1 : 0) + (slice.is_map ? 2 : 0);
    EXPECT_TRUE((flags.narrow(0, slice.offset, slice.numel) == want).all().item<bool>());
  }
  EXPECT_EQ(make_spans({}, at::kCPU).sizes(), (std::vector<int64_t>{0, 3}));
}

TEST(GpuOptimizer, NormOfAnyNumberOfElements) {
  for (const int64_t size : {0, 1, 3, 5, 1023, 70'000, 9'000'001}) {
    for (const auto type : {at::kBFloat16, at::kFloat}) {
      for (const int64_t begin : {0, 1, 3}) {
        SCOPED_TRACE(testing::Message() << size << " " << type << " from " << begin);
        const Tensor gradients =
                         at::randn({size + begin}, kFloatOnGpu).mul(1e-3).to(type).slice(0, begin),
                     control = make_control(at::kCUDA);
        Host{.num_tokens = 3.0}.write(control);
        gradient_norm(gradients, control, 0.9, 0.95);
        const double exact = gradients.to(at::kDouble).norm().item<double>() / 3.0;
        EXPECT_NEAR(slot(control, kernels::cuda::kGradientNorm), exact, 1e-12 * exact);
        EXPECT_NEAR(slot(control, kernels::cuda::kBiasCorrection1), 0.1, 1e-15);
        EXPECT_NEAR(
            slot(control, kernels::cuda::kBiasCorrection2Sqrt), std::sqrt(1.0 - 0.95), 1e-15);
        EXPECT_EQ(slot(control, kernels::cuda::kGradientScale), 1.0 / 3.0);
      }
    }
  }
}

TEST(GpuOptimizer, NormDoesNotOverflow) {  // squares of float32's range are summed in float64
  const Tensor gradients = at::full({1000}, 1e30, kFloatOnGpu), control = make_control(at::kCUDA);
  Host{.num_tokens = 1.0}.write(control);
  gradient_norm(gradients, control, 0.9, 0.95);
  EXPECT_NEAR(slot(control, kernels::cuda::kGradientNorm) / (double{1e30F} * std::sqrt(1000.0)),
              1.0,
              1e-12);
  EXPECT_EQ(slot(control, kernels::cuda::kIsSkipped), 0.0);
}

TEST(GpuOptimizer, TwiceTheSameBits) {
  const auto run = [] {
    const Problem p = make_problem(at::kBFloat16, true);
    for (int i = 0; i < 3; ++i) step(p, {.clip_norm = 0.1});
    return at::cat({p.tensors.master.to(at::kDouble),
                    p.tensors.second_moment.to(at::kDouble),
                    p.tensors.control});
  };
  const Tensor first = run();
  EXPECT_TRUE(at::equal(first, run()));
}

TEST(GpuOptimizer, GraphReplayEqualsEagerBitwise) {
  const Problem eager = make_problem(at::kBFloat16, true),
                replayed = make_problem(at::kBFloat16, true);
  const auto both = [](const Problem& p) {
    gradient_norm(p.tensors.gradients, p.tensors.control, kSettings.beta1, kSettings.beta2);
    adamw(p.tensors, kSettings);
  };
  c10::cuda::getCurrentCUDAStream().synchronize();
  const auto stream = c10::cuda::getStreamFromPool();
  const c10::cuda::CUDAStreamGuard guard(stream);
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  both(replayed);
  graph.capture_end();
  for (int i = 0; i < 3;
       ++i) {  // a new rate and, once, a skipped step reach the graph through the control tensor
    const Host host{.learning_rate = 1e-2 * (i + 1), .loss_sum = i == 1 ? kNaN : 1.0};
    host.write(eager.tensors.control);
    host.write(replayed.tensors.control);
    both(eager);
    graph.replay();
  }
  stream.synchronize();
  EXPECT_TRUE(at::equal(eager.tensors.master, replayed.tensors.master));
  EXPECT_TRUE(at::equal(*eager.tensors.values, *replayed.tensors.values));
  EXPECT_EQ(slot(replayed.tensors.control, kernels::cuda::kNumUpdates), 2.0);
}

TEST(GpuOptimizer, BadInputIsRefusedByName) {
  const Problem good = make_problem(at::kBFloat16, true);
  const auto refusal = [&](const std::function<void(AdamWTensors&)>& spoil) {
    return message_of([&] {
      AdamWTensors tensors = good.tensors;
      spoil(tensors);
      adamw(tensors, kSettings);
    });
  };
  EXPECT_THAT(refusal([](auto& t) { t.master = t.master.cpu(); }),
              HasSubstr("master is on cpu, allowed: cuda"));
  EXPECT_THAT(refusal([](auto& t) { t.master = t.master.to(at::kBFloat16); }),
              HasSubstr("master has dtype BFloat16, allowed: [Float]"));
  EXPECT_THAT(refusal([](auto& t) { t.values = t.master; }),
              HasSubstr("values has dtype Float, allowed: [BFloat16]"));
  EXPECT_THAT(refusal([](auto& t) { t.gradients = t.gradients.to(at::kDouble); }),
              HasSubstr("gradients has dtype Double, allowed: "));
  EXPECT_THAT(refusal([](auto& t) { t.gradients = t.gradients.slice(0, 1); }),
              HasSubstr("as master has"));
  EXPECT_THAT(refusal([](auto& t) {
                t.first_moment = t.first_moment.view({1, -1});
              }),
              HasSubstr("allowed: one dimension, contiguous"));
  EXPECT_THAT(refusal([](auto& t) { t.second_moment = t.second_moment.cpu(); }),
              HasSubstr("second_moment is on cpu"));
  EXPECT_THAT(refusal([](auto& t) { t.spans = t.spans.to(at::kInt); }),
              HasSubstr("spans has dtype Int, allowed: Long"));
  EXPECT_THAT(refusal([](auto& t) { t.spans = t.spans.slice(1, 0, 2); }),
              HasSubstr("allowed: [n, 3], contiguous"));
  EXPECT_THAT(refusal([](auto& t) { t.control = t.control.slice(0, 0, 8); }),
              HasSubstr("control has 8 elements, allowed: 16"));
  EXPECT_THAT(refusal([](auto& t) { t.control = t.control.to(at::kFloat); }),
              HasSubstr("control has dtype Float, allowed: [Double]"));
  EXPECT_THAT(message_of([&] { adamw(good.tensors, {.eps = 0.0}); }),
              HasSubstr("eps is 0, allowed: positive"));
  EXPECT_THAT(
      message_of([&] { gradient_norm(good.tensors.gradients, good.tensors.control, 1.0, 0.95); }),
      HasSubstr("beta1 is 1, allowed: from 0 to below 1"));
}

}  // namespace
}  // namespace t2r::ops
