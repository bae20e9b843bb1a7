// Matrix products with epilogues against float64, fused and (T2R_UNFUSED) in several steps.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <cstdlib>

#include "model/ops/matmul_lt.h"
#include "tests/gpu_linear_support.h"
#include "tests/gpu_support.h"

namespace t2r::ops {
namespace {

TEST(GpuMatmul, EveryOrientationAndSize) {
  for (const auto& [type, bar] : kTypes) {
    for (const auto& [m, n, k] : {std::tuple{256, 768, 512},
                                  std::tuple{1, 64, 64},
                                  std::tuple{64, 1, 32},
                                  std::tuple{33, 7, 19},
                                  std::tuple{5, 9, 1},
                                  std::tuple{1, 1, 1},
                                  std::tuple{0, 8, 8},
                                  std::tuple{8, 8, 0}}) {
      for (const bool a_transposed : {false, true}) {
        for (const bool b_transposed : {false, true}) {
          SCOPED_TRACE(testing::Message() << type << " " << m << " " << n << " " << k << " "
                                          << a_transposed << b_transposed);
          const Tensor a = a_transposed ? random({k, m}, type).t() : random({m, k}, type);
          const Tensor b = b_transposed ? random({n, k}, type).t() : random({k, n}, type);
          const Tensor out = random({m, n}, type), before = out.clone();
          matmul_lt({.a = a, .b = b, .out = out});
          if (m == 0) continue;  // nothing to compare
          EXPECT_LE(relative_error(out, exact(a).matmul(exact(b))), bar);
          out.copy_(before);
          matmul_lt({.a = a, .b = b, .out = out, .accumulate = true});
          EXPECT_LE(relative_error(out, exact(a).matmul(exact(b)) + exact(before)), bar);
        }
      }
    }
  }
}

TEST(GpuMatmul, SumsOfBfloat16InFloat32) {
  for (const auto& [m, n, k] : {std::tuple{256, 768, 512},
                                std::tuple{50304, 64, 1000},
                                std::tuple{33, 7, 19},
                                std::tuple{4, 4, 0}}) {
    SCOPED_TRACE(testing::Message() << m << " " << n << " " << k);
    const Tensor a = random({k, m}, at::kBFloat16).t(), b = random({k, n}, at::kBFloat16),
                 out = random({m, n}, at::kFloat);
    const Tensor before = out.clone(), product = exact(a).matmul(exact(b));
    matmul_lt({.a = a, .b = b, .out = out, .accumulate = true});
    EXPECT_LE(relative_error(out, product + exact(before)), 2e-5);
    matmul_lt({.a = a, .b = b, .out = out});
    if (k > 0) {
      EXPECT_LE(relative_error(out, product), 2e-5);
    } else {
      EXPECT_EQ(out.abs().max().item<float>(), 0.0F);
    }
  }
}

TEST(GpuMatmul, StridedAndMisalignedOperands) {
  for (const auto& [type, bar] : kTypes) {
    for (const int64_t begin : {0, 1, 3, 8}) {
      const Tensor a = random({40, 100}, type).slice(1, begin, begin + 64),
                   b = random({64, 200}, type).slice(1, begin, begin + 72);
      const Tensor out = random({40, 90}, type).slice(1, begin, begin + 72),
                   bias = random({80}, type).slice(0, begin, begin + 72);
      matmul_lt({.a = a, .b = b, .out = out, .epilogue = Epilogue::kBias, .bias = bias});
      EXPECT_LE(relative_error(out, exact(a).matmul(exact(b)) + exact(bias)), bar)
          << type << " from " << begin;
      const Tensor every_other =
          random({40, 128}, type).slice(1, 0, 128, 2);  // no unit stride: copied
      matmul_lt({.a = every_other, .b = b, .out = out});
      EXPECT_LE(relative_error(out, exact(every_other).matmul(exact(b))), bar)
          << type << " from " << begin;
    }
  }
}

/// How much larger gelu's relative error may be than that of x: where outputs are few and x is far
/// below 0, much.
double gelu_condition(const Tensor& x) {
  const Tensor y = at::gelu(x, "tanh"), slope = at::gelu_backward(at::ones_like(x), x, "tanh");
  return std::max(1.0, ((x * slope).norm() / y.norm()).item<double>());
}

/// All epilogues of one shape; `fused`: one call of cuBLASLt is expected to do each.
void expect_epilogues(
    int64_t m, int64_t n, int64_t k, at::ScalarType type, double bar, bool fused) {
  SCOPED_TRACE(testing::Message() << type << " " << m << " " << n << " " << k
                                  << (fused ? " fused" : ""));
  at::manual_seed(7);
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << (a_transposed ? "a^T " : "a ") << (b_transposed ? "b^T" : "b"));
      const double scale = 1.0 / std::sqrt(static_cast<double>(k));
      const Tensor a = a_transposed ? random({k, m}, type).t() : random({m, k}, type);
      const Tensor b = b_transposed ? random({n, k}, type, scale).t() : random({k, n}, type, scale);
      const Tensor bias = random({n}, type), aux = at::empty({m, n}, a.options()),
                   out = at::empty({m, n}, a.options());
      const Tensor product = exact(a).matmul(exact(b));
      const auto check_fused = [&](bool is_fused, const char* name) {
        if (fused) {
          EXPECT_TRUE(is_fused) << name;
        }
      };
      const bool forward = !a_transposed;  // the orientation that training has
      const bool bias_fused =
          matmul_lt({.a = a, .b = b, .out = out, .epilogue = Epilogue::kBias, .bias = bias});
      if (forward) check_fused(bias_fused, "bias");
      EXPECT_LE(relative_error(out, product + exact(bias)), bar) << "bias";
      const bool gelu_fused = matmul_lt(
          {.a = a, .b = b, .out = out, .epilogue = Epilogue::kGelu, .bias = bias, .aux = aux});
      if (forward && type == at::kBFloat16) check_fused(gelu_fused, "gelu");
      EXPECT_LE(relative_error(aux, product + exact(bias)), bar) << "aux";
      const Tensor wanted = at::gelu(product + exact(bias), "tanh");
      const double gelu_bar = bar * gelu_condition(product + exact(bias));
      EXPECT_LE(relative_error(out, wanted), gelu_bar) << "gelu";
      matmul_lt({.a = a, .b = b, .out = out, .epilogue = Epilogue::kGelu, .bias = bias});
      EXPECT_LE(relative_error(out, wanted), gelu_bar) << "gelu without aux";
      const Tensor pre = random({m, n}, type),
                   gradient = at::gelu_backward(product, exact(pre), "tanh");
      const bool dgelu_fused =
          matmul_lt({.a = a, .b = b, .out = out, .epilogue = Epilogue::kDGelu, .aux = pre});
      if (forward && type == at::kBFloat16) check_fused(dgelu_fused, "dgelu");
      EXPECT_LE(relative_error(out, gradient), bar) << "dgelu";
    }
  }
}

TEST(GpuMatmul, EpiloguesAreFusedForWholeVectors) {
  for (const auto& [type, bar] : kTypes) expect_epilogues(512, 768, 256, type, bar, true);
}

TEST(GpuMatmul, EpiloguesOfAnySize) {
  for (const auto& [type, bar] : kTypes) {
    for (const auto& [m, n, k] : {std::tuple{1, 64, 64},
                                  std::tuple{65, 7, 24},
                                  std::tuple{13, 20, 9},
                                  std::tuple{3, 1, 5}}) {
      expect_epilogues(m, n, k, type, bar, false);
    }
  }
}

TEST(GpuMatmul, EpiloguesInSeveralSteps) {
  for (const char* list : {"bias,gelu,dgelu", "dgelu", "gelu"}) {
    const Unfused unfused(list);
    for (const auto& [type, bar] : kTypes) {
      expect_epilogues(256, 128, 64, type, bar, false);
      expect_epilogues(65, 7, 24, type, bar, false);
    }
  }
  const Unfused unfused("gelu");
  const Tensor a = random({64, 64}, at::kBFloat16), bias = random({64}, at::kBFloat16),
               out = at::empty_like(a);
  EXPECT_TRUE(matmul_lt({.a = a, .b = a, .out = out, .epilogue = Epilogue::kBias, .bias = bias}));
  EXPECT_FALSE(matmul_lt({.a = a, .b = a, .out = out, .epilogue = Epilogue::kGelu, .bias = bias}));
}

TEST(GpuMatmul, ColumnSumOfAnyMatrix) {
  for (const auto& [type, bar] : kTypes) {
    for (const auto& [rows, columns] : {std::pair{65536, 768},
                                        std::pair{1000, 3072},
                                        std::pair{1, 64},
                                        std::pair{64, 1},
                                        std::pair{0, 8},
                                        std::pair{77, 7},
                                        std::pair{4099, 50257},
                                        std::pair{100'000, 1}}) {
      SCOPED_TRACE(testing::Message() << type << " " << rows << " " << columns);
      const Tensor x = random({rows, columns}, type).add(0.1), wanted = exact(x).sum(0);
      const Tensor sum = column_sum(x);
      ASSERT_EQ(sum.sizes(), wanted.sizes());
      EXPECT_EQ(sum.scalar_type(), type);
      EXPECT_LE(relative_error(sum, wanted),
                type == at::kFloat ? 2e-6 : 4e-3);  // one rounding in bfloat16
      EXPECT_TRUE(at::equal(sum, column_sum(x)));
    }
    const Tensor wide = random({300, 100}, type);
    EXPECT_LE(relative_error(column_sum(wide.slice(1, 3, 67)), exact(wide).slice(1, 3, 67).sum(0)),
              bar);
    EXPECT_LE(relative_error(column_sum(wide.slice(1, 8, 72)), exact(wide).slice(1, 8, 72).sum(0)),
              bar);
    EXPECT_LE(relative_error(column_sum(wide.t()), exact(wide).sum(1)), bar);
  }
}

}  // namespace
}  // namespace t2r::ops
